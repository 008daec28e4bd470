"""Readers: one small module for each dataset layout, and the writer of the synthetic one."""

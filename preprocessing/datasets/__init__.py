"""Readers, one module for each dataset layout, and the writer of synthetic sets.

Readers list files. Not allowed in them: opening images or videos, detecting faces, writing files.
"""

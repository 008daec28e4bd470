"""Benchmarks; each program prints tables and ends with one JSON line. Not part of an installation."""

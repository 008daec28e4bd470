"""Measures what needs a GPU, within a time limit.

Not allowed here: anything that needs more packages than `required_packages.py` lists, above all the face
detectors and the command line.
"""

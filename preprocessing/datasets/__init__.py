"""Readers, one module for each dataset layout, and the writer of synthetic sets.

Readers list files; `preprocessing.media_kind` tells them what a file is. Not allowed in them: decoding images
or videos, detecting faces, writing files.
"""

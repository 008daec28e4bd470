"""What a reader of your own dataset imports; docs/how-to/own-reader.md shows one."""

from __future__ import annotations

from preprocessing.datasets.reader import Dataset, FrameSequence, Skipped, Span, as_text
from preprocessing.datasets.tree import Tree
from services.errors import InvalidInput

__all__ = ["Dataset", "FrameSequence", "InvalidInput", "Skipped", "Span", "Tree", "as_text"]

"""The error of content that cannot be decoded."""

GIT_LFS_POINTER = b"version https://git-lfs"
"""How the text begins that Git stores instead of a large file."""

GIT_LFS_ADVICE = "it is a pointer of Git LFS; run `git lfs pull`"


class Unreadable(Exception):
    """The reason, to be read after the name of the file and a colon."""

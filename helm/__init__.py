"""The chart, and what makes its generated files. Not installed, and no part of any image."""

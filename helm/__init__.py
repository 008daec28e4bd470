"""The chart, and the program that generates parts of it. Not installed, and not part of any image."""

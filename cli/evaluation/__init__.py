"""Statistics on finished studies: comparison, confirmation, nested cross-validation, replay.

May not live here: options and output of commands.
"""

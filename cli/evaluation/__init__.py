"""Statistics on finished studies: comparison, confirmation, nested cross-validation, replay.

Not allowed here: options and output of commands.
"""

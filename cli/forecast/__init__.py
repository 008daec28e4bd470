"""What a study will cost before it runs: forecast from arithmetic, presets and measured speeds.

Not allowed here: options and output of commands.
"""

"""What a study will cost before it runs: forecast from arithmetic, presets and measured speeds.

May not live here: options and output of commands.
"""

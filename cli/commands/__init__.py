"""One module per noun of the command line: options, calls, output.

Not allowed here: work that a test would want to call without a command line.
"""

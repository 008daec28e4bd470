"""How studies, progress and findings look in a terminal.

Not allowed here: calls to a coordinator, work on data.
"""

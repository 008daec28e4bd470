"""How studies, progress and findings look in a terminal.

May not live here: calls to a coordinator, work on data.
"""

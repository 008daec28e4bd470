"""REST calls to a coordinator as contract types, for workers, the command line and users' own programs.

This package only finds a coordinator and calls its REST routes. Not allowed here: console output, a database.
"""

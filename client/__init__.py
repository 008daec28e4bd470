"""REST calls to a coordinator as contract types, for workers, the command line and users' own programs.

Not allowed here: console output, files of this machine, a database.
"""

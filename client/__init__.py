"""HTTP to a coordinator, for workers, the command line and people's own programs.

May not live here: console output, files of this machine, a database; anything but REST calls as contract types.
"""

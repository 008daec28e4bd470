"""HTTP to a coordinator, for workers, the command line and people's own programs.

May not live here: console output, a database; anything but finding a coordinator and calling its REST routes.
"""

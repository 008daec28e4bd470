"""REST calls to a coordinator as contract types, for workers, the command line and users' own programs.

May not live here: console output, a database; anything but finding a coordinator and calling its REST routes.
"""

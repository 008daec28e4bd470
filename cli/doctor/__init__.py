"""`foldwise doctor`: checks of this machine, a service and a cluster, each with a fix.

Not allowed here: anything that changes what it checks.
"""

"""`foldwise`, for people: every command, and everything on one machine.

Not allowed here: rules of scheduling, training or preprocessing. The only package that may import all others.
"""

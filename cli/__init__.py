"""`foldwise`, for people: every command, and everything on one machine.

May not live here: rules of scheduling, training or preprocessing. The only package that may import all others.
"""

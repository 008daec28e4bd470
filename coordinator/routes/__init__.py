"""Short REST handlers: check the request, call one function in one transaction, return a contract type.

Not allowed here: SQL, rules about states.
"""

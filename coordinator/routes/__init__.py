"""Short REST handlers: check the request, call one function in one transaction, return a contract type.

May not live here: SQL, rules about states.
"""

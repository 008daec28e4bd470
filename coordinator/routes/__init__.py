"""REST handlers, a few lines each: check, call one function in one transaction, answer a contract type.

May not live here: SQL, rules about states.
"""

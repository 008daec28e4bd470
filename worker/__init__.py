"""The process that trains: it claims a fold, runs it, reports it and goes on with the next.

May not live here: the database, Optuna, FastAPI, anything that decides over a study. Nothing of
`coordinator`, `preprocessing` or `cli` is imported.
"""

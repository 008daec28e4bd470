"""The process that trains: it claims a fold, runs it, reports it and continues with the next.

Not allowed here: the database, Optuna, FastAPI, decisions about a study, imports from `coordinator` or `cli`.
Only `worker.inference` imports from `preprocessing`.
"""

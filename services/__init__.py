"""What every process shares: contracts, search space, folds, scores, the clip cache, errors, settings and logs.

May not live here: torch, FastAPI, SQLAlchemy, Optuna, an HTTP client, the Kubernetes client, or anything
that only one process uses.
"""

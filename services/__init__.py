"""What several processes share: contracts, search space, folds, scores, clip cache, models, errors and logs.

Not allowed here: torch, OpenCV, FastAPI, SQLAlchemy, Optuna, an HTTP or Kubernetes client, and anything that
only one process uses.
"""

"""What several processes share: contracts, search space, folds, scores, clip cache, models, errors and logs.

Not allowed here: torch, OpenCV, FastAPI, SQLAlchemy, Optuna, and an HTTP or Kubernetes client.
"""

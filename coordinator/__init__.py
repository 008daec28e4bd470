"""The coordinator: it owns studies, trials, folds and leases in PostgreSQL, and serves REST.

Not allowed here: torch, OpenCV, training, anything that reads pixels. Only `coordinator.optimizer` imports
Optuna; only `coordinator.store` and the modules that call it hold database sessions.
"""

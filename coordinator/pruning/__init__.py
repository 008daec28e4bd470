"""Applies a study's pruning rules (`services.pruning`), orders its folds, and reads what rules ask of trials.

Not allowed here: writes to trials or leases; `coordinator.scheduling` acts on a decision.
"""

"""The life of a study: creation, start, pause, stop, export, import, deletion, final training.

Not allowed here: leases and counting of folds (`coordinator.scheduling`), reading SQL (`coordinator.store`).
"""

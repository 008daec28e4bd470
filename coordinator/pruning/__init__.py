"""Rules that end a trial early, the order of folds they follow, and what they may ask of other trials.

May not live here: writes to trials or leases; `coordinator.scheduling` acts on a decision.
"""

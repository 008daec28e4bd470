"""Pruning rules, one file each, and what a rule is (`rule`).

A rule is the contract that a study names and the code that decides: values in, values out. May not live here: a
database, the order of folds, anything that acts on a decision.
"""

# First, whoever imports a rule first: the union of contracts imports the rules, and they its base class.
import services.contracts  # noqa: F401

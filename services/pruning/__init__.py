"""Pruning rules, one file each, and what a rule is (`rule`).

A rule is the contract that a study names and the code that decides: values in, values out. May not live here: a
database, the order of folds, anything that acts on a decision.
"""

# Contracts import the rules for their union, and rules import the contracts' base class: contracts come first.
import services.contracts  # noqa: F401

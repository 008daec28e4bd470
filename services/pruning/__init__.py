"""Pruning rules, one file each, and what a rule is (`rule`).

A rule is both the contract that a study names and the code that decides: values in, values out. To add one,
write its file, add its class to the union in `services.contracts.pruning_rules`, test it, and describe it in
`docs/pruning.md`; `make rest` then adds it to the REST reference. Not allowed here: a database, the order of
folds, anything that acts on a decision.
"""

# Contracts import the rules for their union, and rules import the contracts' base class: contracts come first.
import services.contracts  # noqa: F401

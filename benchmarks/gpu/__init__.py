"""Everything that has to be measured on a GPU, in the few minutes that one may be at hand.

Not allowed here: anything that needs more packages than `required_packages.py` lists, above all preprocessing
and the command line.
"""

"""Who calls, what they may do, how often, and how errors are told.

May not live here: rules about studies, trials or folds; HTML beyond the choice between a page and JSON.
"""

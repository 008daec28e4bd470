"""One fold, from its assignment to its result: network, augmentation, clips, optimiser, fit, evaluation.

May not live here: HTTP, leases, other folds or trials, face detection, OpenCV. What goes in is a
`FoldAssignment` and a clip cache, what comes out is a `FoldResult`.
"""

"""One fold, from its task to its result: network, augmentation, clips, optimiser, training, evaluation.

`fit.run_fold` takes a `FoldTask` and a clip cache and returns a `FoldResult`. Not allowed here: HTTP, leases,
other folds or trials, face detection, OpenCV.
"""

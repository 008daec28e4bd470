"""Turns a dataset's folders into a verified clip cache: readers, face detection, clips, job, inspection.

Not allowed here: training, studies, HTTP, and imports from `coordinator`, `worker`, `cli` or `k8s`.
"""

"""Models of the catalogue: training them outside a study, and exporting them.

Not allowed here: prediction (`worker.inference`).
"""

"""Models of the catalogue: training them outside a study, and exporting them.

May not live here: prediction (`worker.inference`).
"""

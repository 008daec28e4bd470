"""Prediction with a trained model: a label for each window of a video, and the video with boxes and labels.

Not allowed here: training, calls to a coordinator. This is the only package of the worker that imports from
`preprocessing`: a video must be cropped in the same way as the training clips.
"""

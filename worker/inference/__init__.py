"""Using a trained model: emotions of a face over the windows of a video, and the video with boxes and labels.

May not live here: training, calls to a coordinator. Of the worker, only this package may use `preprocessing`: a
video must be cropped as the training clips were.
"""

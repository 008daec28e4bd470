"""From a dataset's folders to a verified clip cache: readers, face detection, clips, the job.

May not live here: training, studies, HTTP. Nothing of `coordinator`, `worker` or `cli` is imported.
"""

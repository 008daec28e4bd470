"""Follows one person's face through the frames of a clip, and gives every frame a box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocessing.faces import FaceBox, intersection_over_union


def follow_one_face(found: Sequence[Sequence[FaceBox]]) -> list[FaceBox | None]:
    """One person's face in each frame; None if it was not found.

    Boxes are linked from frame to frame by their overlap, the largest first; a face that overlaps no earlier
    box starts a new track. The track with the largest total area wins, so that a face that comes close for one
    frame does not take over the clip. If no frame has several faces, every face counts, however far it moved.

    Args:
        found: the faces of each frame, in temporal order.
    """
    if all(len(faces) <= 1 for faces in found):
        return [faces[0] if faces else None for faces in found]
    tracks: list[dict[int, FaceBox]] = []
    for frame_index, faces in enumerate(found):
        # A track is matched by its last box, so it survives frames in which its face was missed.
        pairs = sorted(
            (
                (-overlap, track_index, face_index)
                for track_index, track in enumerate(tracks)
                for face_index, face in enumerate(faces)
                if (overlap := intersection_over_union(track[max(track)], face)) > 0.0
            ),
        )
        continued: set[int] = set()
        taken: set[int] = set()
        for _, track_index, face_index in pairs:
            if track_index not in continued and face_index not in taken:
                tracks[track_index][frame_index] = faces[face_index]
                continued.add(track_index)
                taken.add(face_index)
        tracks += [{frame_index: face} for face_index, face in enumerate(faces) if face_index not in taken]
    winner = max(tracks, key=lambda track: sum(face.area for face in track.values()))
    return [winner.get(frame_index) for frame_index in range(len(found))]


def fill_gaps(found: Sequence[FaceBox | None]) -> list[FaceBox] | None:
    """A box for every frame: a gap gets the box of the nearest frame, the earlier of two.

    None if no frame has a box.
    """
    with_face = [i for i, box in enumerate(found) if box is not None]
    if not with_face:
        return None
    nearest = (min(with_face, key=lambda other: (abs(other - i), other)) for i in range(len(found)))
    return [box for i in nearest if (box := found[i]) is not None]


def median_box(boxes: Sequence[FaceBox]) -> FaceBox:
    """The box with the median of each edge (the mean of the middle two for an even number of boxes)."""
    left, top, right, bottom, confidence = (
        float(value)
        for value in np.median([(b.x, b.y, b.x + b.width, b.y + b.height, b.confidence) for b in boxes], axis=0)
    )
    return FaceBox(x=left, y=top, width=right - left, height=bottom - top, confidence=confidence)

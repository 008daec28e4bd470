"""Which of the faces found in a clip's frames are those of one person, and which box stands for each frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocessing.faces import FaceBox, intersection_over_union


def follow_one_face(found: Sequence[Sequence[FaceBox]]) -> list[FaceBox | None]:
    """One person's face in each frame; None where it was not found.

    Faces are followed from frame to frame by the overlap of their boxes, the greatest first; a face that no
    box of before overlaps begins a track of its own. The track with the greatest summed area wins: a face
    that comes close for one frame does not take the clip over. Where no frame has several faces, nothing has
    to be chosen, and every face counts, however far it moved.

    Args:
        found: the faces of each frame, in temporal order.
    """
    if all(len(faces) <= 1 for faces in found):
        return [faces[0] if faces else None for faces in found]
    tracks: list[dict[int, FaceBox]] = []
    for frame_index, faces in enumerate(found):
        # Each track is asked by its last box, so a face may be missed for some frames and go on.
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
    """A box for every frame: where there is none, that of the nearest frame, the earlier of two.

    None where no frame has one.
    """
    with_face = [i for i, box in enumerate(found) if box is not None]
    if not with_face:
        return None
    nearest = (min(with_face, key=lambda other: (abs(other - i), other)) for i in range(len(found)))
    return [box for i in nearest if (box := found[i]) is not None]


def median_box(boxes: Sequence[FaceBox]) -> FaceBox:
    """The box with the median of each edge; of an even number, the mean of the middle two."""
    left, top, right, bottom, confidence = (
        float(value)
        for value in np.median([(b.x, b.y, b.x + b.width, b.y + b.height, b.confidence) for b in boxes], axis=0)
    )
    return FaceBox(x=left, y=top, width=right - left, height=bottom - top, confidence=confidence)

"""One person's face through a clip, and the box of frames that have none."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from preprocessing.face_tracks import fill_gaps, follow_one_face, median_box
from preprocessing.faces import FaceBox, intersection_over_union


def box(x: float, y: float = 0.0, side: float = 10.0) -> FaceBox:
    return FaceBox(x=x, y=y, width=side, height=side, confidence=0.9)


boxes = st.builds(
    box,
    st.floats(-50, 500).map(round),
    st.floats(-50, 500).map(round),
    st.integers(1, 200).map(float),
)
clips = st.lists(st.lists(boxes, max_size=3).map(tuple), min_size=1, max_size=8)


@given(clips)
def test_a_face_is_one_of_those_found_in_its_frame(found: list[tuple[FaceBox, ...]]) -> None:
    followed = follow_one_face(found)
    assert len(followed) == len(found)
    assert all(face is None or face in faces for face, faces in zip(followed, found, strict=True))
    assert (followed.count(None) == len(found)) == all(not faces for faces in found)


@given(clips)
def test_the_order_in_which_a_detector_names_faces_does_not_matter(found: list[tuple[FaceBox, ...]]) -> None:
    def areas(followed: list[FaceBox | None]) -> float:
        return sum(face.area for face in followed if face)

    faces = [(place, face) for place, found_there in enumerate(found) for face in found_there]
    overlaps = [
        overlap
        for (before, one), (after, other) in combinations(faces, 2)
        if before < after and (overlap := intersection_over_union(one, other)) > 0.0
    ]
    assume(len(set(overlaps)) == len(overlaps))  # of equal overlaps the first named is taken
    turned = [tuple(reversed(faces)) for faces in found]
    assert areas(follow_one_face(found)) == pytest.approx(areas(follow_one_face(turned)))


def test_someone_who_comes_close_for_one_frame_does_not_take_the_clip_over() -> None:
    person = [box(100 + i, side=60) for i in range(5)]
    passer_by = box(300, side=90)
    found = [(face,) if i != 2 else (passer_by, face) for i, face in enumerate(person)]
    assert follow_one_face(found) == person


def test_two_people_who_swap_sizes_are_told_apart() -> None:
    one = [box(0 + i, side=50 + 4 * i) for i in range(5)]
    other = [box(200 + i, side=58 - 4 * i) for i in range(5)]
    found = [tuple(sorted(pair, key=lambda face: -face.area)) for pair in zip(one, other, strict=True)]
    assert found[0][0] is other[0]
    assert follow_one_face(found) == one


def test_a_face_that_is_missed_for_a_while_goes_on() -> None:
    person = [box(10, side=50), None, box(14, side=50), box(16, side=50)]
    other = box(200, side=20)
    found = [(face, other) if face else (other,) for face in person]
    assert follow_one_face(found) == person


def test_a_lone_face_may_jump() -> None:
    found = [(box(0),), (), (box(400),)]
    assert follow_one_face(found) == [box(0), None, box(400)]


def test_a_gap_takes_the_nearest_box_and_the_earlier_of_two() -> None:
    first, last = box(1), box(2)
    assert fill_gaps([None, first, None, last, None]) == [first, first, first, last, last]
    assert fill_gaps([None, None]) is None


def test_the_median_box_is_that_of_the_edges() -> None:
    found = median_box([box(0, 5, side=10), box(2, 5, side=20), box(100, 7, side=14)])
    assert (found.x, found.y, found.x + found.width, found.y + found.height) == (2, 5, 22, 21)


@pytest.mark.parametrize(
    ("other", "share"), [(box(0), 1.0), (box(5), 1 / 3), (box(10), 0.0), (box(2, 2, side=5), 0.25)]
)
def test_intersection_over_union(other: FaceBox, share: float) -> None:
    assert intersection_over_union(box(0), other) == pytest.approx(share)

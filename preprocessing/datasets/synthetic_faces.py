"""Draws a synthetic face: head, eyes, brows, nose, mouth and hair, and the light on them."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.datasets.synthetic_canvas import (
    Canvas,
    Gray,
    Picture,
    Points,
    Tint,
    curve,
    mirrored,
    oval,
    points_at,
)
from preprocessing.datasets.synthetic_expressions import EYES_SHUT, Pose
from preprocessing.datasets.synthetic_motion import HEIGHT, SCALE, WIDTH, Light, Person

_EYE_Y = -0.2


def draw_face(
    person: Person,
    pose: Pose,
    head: npt.NDArray[np.float64],
    light: Light,
    backdrop: Gray,
    tints: Mapping[str, Tint] | None = None,
) -> Picture:
    """Draw one picture of the size of `backdrop`, uint8, height x width (x 3: blue, green, red).

    Args:
        person: the subject.
        pose: how far each part of the face is moved.
        head: a row of `move_head`, float64, 5.
        light: the light on this frame.
        backdrop: what is behind the face; it is not changed.
        tints: colours from `make_tints`; None: gray.
    """
    canvas = Canvas(backdrop, half_width=person.half_width, centre=person.centre, head=head, tints=tints)
    _draw_head(canvas, person, pose)
    _shade_form(canvas, person, pose)
    _shade_brow_folds(canvas, person, pose)
    for side in (-1.0, 1.0):
        _shade_cheek_folds(canvas, person, pose, side)
    canvas.apply_shades()
    for side in (-1.0, 1.0):
        _draw_eye(canvas, person, pose, side)
        _draw_brow(canvas, person, pose, side)
    _draw_nose(canvas, person, pose)
    _draw_mouth(canvas, person, pose)
    _draw_hair(canvas, person)
    return canvas.coloured(_apply_light(canvas, light))


def make_backdrop(rng: np.random.Generator) -> Gray:
    """The background of a face: soft blotches, `SCALE` times smaller than a frame."""
    height, width = HEIGHT // SCALE, WIDTH // SCALE
    coarse = rng.uniform(-12, 12, (4, 5)).astype(np.float32) + np.float32(rng.uniform(70, 190))
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine.astype(np.uint8)


def make_tints(rng: np.random.Generator) -> dict[str, Tint]:
    """Random colours of one person, by the name of the part of the picture."""

    def tint(red: float, green: float, blue: float) -> Tint:
        # keeps the brightness: a colour picture decoded to gray equals the gray picture
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        return blue / bright, green / bright, red / bright

    def random_tint(spread: float) -> Tint:
        red, green, blue = (float(value) for value in rng.uniform(1 - spread, 1 + spread, 3))
        return tint(red, green, blue)

    warm = float(rng.uniform(0.1, 0.35))
    return {
        "backdrop": random_tint(0.12),
        "clothes": random_tint(0.45),
        "hair": tint(1.08 + float(rng.uniform(0.0, 0.25)), 1.0, 0.85),
        "lip": tint(1.3 + 0.4 * warm, 0.85, 0.85),
        "skin": tint(1.0 + warm, 1.0, 1.0 - 0.6 * warm),
        "white": tint(1.0, 1.0, 1.0),
    }


def _draw_head(canvas: Canvas, person: Person, pose: Pose) -> None:
    if person.hair in _BEHIND:
        half_width, top, bottom = _BEHIND[person.hair]
        behind = oval(0.0, (top + bottom) / 2, half_width, (bottom - top) / 2)
        canvas.fill(behind, person.hair_tone, depth=0.0, tint="hair")
    shoulders = mirrored([0.0, 1.0, 2.2, 2.6, 2.6], [1.72, 1.72, 2.05, 2.6, 4.0])
    neck = mirrored([0.55, 0.62, 0.0], [0.6, 1.8, 2.0])
    canvas.fill(curve(shoulders), person.clothes, depth=0.0, tint="clothes")
    canvas.fill(neck, person.skin * 0.72, depth=0.0, tint="skin")
    if person.hair != "long":
        for side in (-1.0, 1.0):
            canvas.fill(oval(side, -0.08, 0.12, 0.26), person.skin * 0.85, depth=0.0, tint="skin")
    jaw, chin, drop = person.jaw, person.chin, 0.16 * pose.jaw
    outline = mirrored(
        [0.0, 0.55, 0.88, 1.0, 0.98, 0.45 + 0.45 * jaw, 0.7 * jaw, 0.4 * jaw, 0.14],
        [-1.33, -1.22, -0.85, -0.35, 0.1, 0.5, 0.85 + 0.5 * drop, chin - 0.08 + drop, chin + drop],
    )
    canvas.fill(curve(outline), person.skin, depth=0.3, tint="skin")
    if person.beard > 0:
        low = chin + drop
        beard = mirrored(
            [0.0, 0.42, 0.74, 0.9, 0.8 * jaw, 0.4 * jaw, 0.14],
            [0.55, 0.58, 0.5, 0.2, 0.75, low - 0.12, low - 0.02],
        )
        canvas.fill(
            curve(beard), 128 * _blend(1.0, person.hair_tone / person.skin, person.beard), on=canvas.soft
        )


def _shade_form(canvas: Canvas, person: Person, pose: Pose) -> None:
    tip = _nose_tip(person, pose)
    for side in (-1.0, 1.0):
        canvas.fill(oval(side * person.eye_gap, -0.24, 0.30, 0.19), 104, on=canvas.soft)
        canvas.fill(oval(side * 0.17, 0.02, 0.05, 0.28), 112, on=canvas.soft)
        cheek = oval(side * 0.62, 0.22 - 0.1 * pose.cheek, 0.2, 0.16)
        canvas.fill(cheek, 136 + 10 * pose.cheek, on=canvas.soft)
    canvas.fill(oval(0, -0.85, 0.5, 0.25), 136, on=canvas.soft)
    canvas.fill(oval(0, (tip - 0.2) / 2, 0.07, (tip + 0.2) / 2), 146, on=canvas.soft)
    canvas.fill(oval(0, tip + 0.12, 0.2, 0.05), 100, on=canvas.soft)
    canvas.fill(oval(0, person.mouth + 0.25 + 0.2 * pose.jaw, 0.24, 0.05), 104, on=canvas.soft)


def _shade_brow_folds(canvas: Canvas, person: Person, pose: Pose) -> None:
    brow = _EYE_Y - person.brow_height
    raised = 0.6 * max(pose.inner_brow, 0.0) + 0.4 * max(pose.outer_brow, 0.0)
    for y in (brow - 0.22, brow - 0.34):
        across = curve(points_at([-0.5, 0.0, 0.5], [y, y - 0.03, y]), closed=False)
        canvas.line(across, 128 - 26 * raised, 0.035, on=canvas.fine)
    for side in (-1.0, 1.0):
        between = points_at([side * 0.06, side * 0.05], [brow - 0.06, brow + 0.14])
        canvas.line(between, 128 - 38 * max(pose.frown, 0.0), 0.04, on=canvas.fine)
        for y in (-0.16, -0.06, 0.04):
            bridge = points_at([side * 0.02, side * 0.15], [y - 0.02, y + 0.04])
            canvas.line(bridge, 128 - 34 * pose.nose_wrinkle, 0.035, on=canvas.fine)


def _shade_cheek_folds(canvas: Canvas, person: Person, pose: Pose, side: float) -> None:
    corner = pose.corner_left if side < 0 else pose.corner_right
    tip, eye = _nose_tip(person, pose), person.eye_gap
    to_mouth = points_at([0.22, 0.40 + 0.05 * corner, 0.48 + 0.08 * corner], [tip - 0.02, 0.45, 0.66], side)
    pulled = 8 + 18 * max(pose.upper_lip, 0.0) + 16 * max(corner, 0.0) + 8 * pose.cheek
    canvas.line(curve(to_mouth, closed=False), 128 - pulled, 0.06, on=canvas.fine)
    below_mouth = points_at([0.40, 0.46], [person.mouth + 0.1, person.mouth + 0.26], side)
    canvas.line(below_mouth, 128 + 26 * min(corner, 0.0), 0.06, on=canvas.fine)
    below_eye = points_at([eye - 0.15, eye, eye + 0.2], [-0.04, 0.0, -0.06], side)
    canvas.line(below_eye, 128 - 26 * pose.cheek, 0.04, on=canvas.fine)


def _draw_eye(canvas: Canvas, person: Person, pose: Pose, side: float) -> None:
    x, half, height = side * person.eye_gap, person.eye_width, person.eye_height
    up = max(0.012, height * (1 + 0.75 * pose.eye_open))
    low = max(0.006, height * (0.62 + 0.25 * max(pose.eye_open, 0.0)) - 0.05 * pose.cheek)
    if pose.eye_open <= EYES_SHUT:
        up, low = 0.008, 0.006
    across = x + half * np.array([-1.0, -0.5, 0.05 * side, 0.55, 1.0])
    upper = curve(points_at(across, _EYE_Y - up * np.array([0.0, 0.8, 1.0, 0.75, 0.0])), closed=False)
    across = x + half * np.array([1.0, 0.5, -0.5, -1.0])
    lower = curve(points_at(across, _EYE_Y + low * np.array([0.0, 0.85, 0.85, 0.0])), closed=False)
    opening = np.concatenate([upper, lower])
    within, eye = np.zeros_like(canvas.image), np.full_like(canvas.image, round(person.skin * 0.5 + 125))
    canvas.fill(opening, 255, on=within, tint="white")
    canvas.fill(oval(x, _EYE_Y - 0.01, 0.085, 0.085), person.iris, on=eye)
    canvas.fill(oval(x, _EYE_Y - 0.01, 0.04, 0.04), 8, on=eye)
    canvas.fill(oval(x - 0.03, _EYE_Y - 0.04, 0.016, 0.016), 240, on=eye)
    cv2.copyTo(eye, within, canvas.image)
    canvas.line(upper, person.skin * 0.28, 0.04)
    canvas.line(lower, person.skin * 0.62, 0.02)
    crease = upper - np.array([0.0, 0.05 + 0.02 * pose.eye_open], np.float32)
    canvas.line(crease, person.skin * 0.7, 0.02)


def _draw_brow(canvas: Canvas, person: Person, pose: Pose, side: float) -> None:
    base, eye = _EYE_Y - person.brow_height, person.eye_gap
    inner = base - 0.13 * pose.inner_brow + 0.04 * pose.nose_wrinkle
    middle = base - person.brow_arch - 0.06 * (pose.inner_brow + pose.outer_brow)
    outer = base + 0.04 - 0.12 * pose.outer_brow
    xs = [eye - 0.25 - 0.07 * pose.frown, eye - 0.02, eye + 0.15, eye + 0.31]
    ys = np.array([inner, middle, (middle + outer) / 2 - 0.015, outer])
    thick = person.brow_thickness * np.array([0.75, 1.0, 0.85, 0.25])
    above = curve(points_at(xs, ys - thick, side), closed=False)
    below = curve(points_at(xs, ys + thick, side), closed=False)
    canvas.fill(np.concatenate([above, below[::-1]]), person.brow, tint="hair")


def _draw_nose(canvas: Canvas, person: Person, pose: Pose) -> None:
    wide, tip = person.nose_width * (1 + 0.2 * pose.nose_wrinkle), _nose_tip(person, pose)
    for side in (-1.0, 1.0):
        canvas.fill(oval(side * 0.5 * wide, tip + 0.03, 0.055, 0.028), person.skin * 0.35, depth=1.6)
        wing = points_at([0.9 * wide, 1.08 * wide, 0.85 * wide], [tip - 0.08, tip - 0.01, tip + 0.05], side)
        canvas.line(curve(wing, closed=False), person.skin * 0.62, 0.025, depth=1.5)


def _nose_tip(person: Person, pose: Pose) -> float:
    return person.nose_tip - 0.05 * pose.nose_wrinkle


def _draw_mouth(canvas: Canvas, person: Person, pose: Pose) -> None:
    half = person.mouth_width * (1 + 0.25 * pose.stretch)
    lip = person.lip_height * (1 - 0.6 * max(pose.press, 0.0))
    low = person.mouth + 0.07 * pose.jaw
    left = (-half - 0.04 * pose.corner_left, low - 0.14 * pose.corner_left)
    right = (half + 0.04 * pose.corner_right, low - 0.14 * pose.corner_right)
    # a smile lifts the middle too, but far less than the corners
    ceiling = person.mouth - 0.03 * (pose.corner_left + pose.corner_right) - 0.09 * pose.upper_lip
    gap = 0.34 * pose.jaw + 0.06 * max(pose.upper_lip, 0.0)
    floor = ceiling + gap

    def from_corner_to_corner(xs: list[float], ys: list[float]) -> Points:
        return curve(
            np.array([left, *zip(np.multiply(xs, half), ys, strict=True), right], np.float32), closed=False
        )

    top = from_corner_to_corner(
        [-0.5, -0.12, 0.0, 0.12, 0.5], [ceiling - share * lip for share in (0.75, 1.0, 0.85, 1.0, 0.75)]
    )
    upper = from_corner_to_corner([-0.5, 0.0, 0.5], [ceiling + 0.01, ceiling + 0.02, ceiling + 0.01])
    side = floor + 0.01 - 0.12 * gap
    lower = from_corner_to_corner([-0.5, 0.0, 0.5], [side, floor + 0.02, side])
    bottom = from_corner_to_corner([-0.5, 0.0, 0.5], [floor + share * lip for share in (0.85, 1.25, 0.85)])
    if person.moustache > 0:
        high = person.mouth - 0.09 * pose.upper_lip
        hairs = mirrored(
            [0.0, 0.5 * half, 1.05 * half, 0.0], [high - 0.19, high - 0.17, low + 0.02, high - 0.02]
        )
        tone = _blend(person.skin, person.hair_tone, 0.7 * person.moustache)
        canvas.fill(curve(hairs), tone, depth=1.2, tint="hair")
    canvas.fill(np.concatenate([top, bottom[::-1]]), person.lip, tint="lip")
    if gap > 0.02:
        canvas.fill(np.concatenate([upper, lower[::-1]]), 28)
        teeth = upper + np.clip(0.55 * (lower - upper), 0.0, np.array([0.0, 0.09], np.float32))
        canvas.fill(np.concatenate([upper, teeth[::-1]]), person.skin * 0.4 + 135, tint="white")
    canvas.line(upper, person.lip * 0.5, 0.022)
    for x, y in (left, right):
        canvas.fill(oval(x, y, 0.03, 0.025), person.lip * 0.6)


_BEHIND = {"long": (1.28, -1.5, 1.35), "full": (1.2, -1.5, 0.1)}
"""Hair behind the head: half width, top, bottom."""

_FRONT = {
    "cropped": (-0.25, -1.42, 0.0),
    "long": (-0.05, -1.52, 0.12),
    "parted": (-0.25, -1.42, 0.18),
    "full": (-0.05, -1.52, 0.0),
}
"""Hair on the head: where it ends at the sides, its top, how far it is swept aside; bald people have none."""


def _draw_hair(canvas: Canvas, person: Person) -> None:
    if person.hair not in _FRONT:
        return
    end, top, sweep = _FRONT[person.hair]
    line = person.hairline
    outside = points_at([-1.03, -1.07, -0.8, 0.0, 0.8, 1.07, 1.03], [end, -0.6, -1.15, top, -1.15, -0.6, end])
    inside = points_at(
        [0.93, 0.72, 0.2, -0.3, -0.72, -0.93],
        [-0.45, line + 0.12 - sweep, line - sweep, line + sweep, line + 0.14 + sweep, -0.45],
    )
    canvas.fill(curve(np.concatenate([outside, inside])), person.hair_tone, depth=0.2, tint="hair")


def _apply_light(canvas: Canvas, light: Light) -> Gray:
    """The picture under this light, as if the head were half an ellipsoid."""
    height, width = canvas.image.shape
    # light varies slowly over the picture, so a sixteenth of the pixels is enough
    step = 4
    ys, xs = np.mgrid[0 : height + step : step, 0 : width + step : step]
    points = (np.stack([xs, ys], axis=-1) - canvas.origin) @ np.linalg.inv(canvas.axes) / np.array([1.12, 1.48])
    # pixels beyond the head get the light of its rim
    points /= np.maximum(1.0, np.linalg.norm(points, axis=-1, keepdims=True) / 0.98)
    right, down, front = light.towards
    out = np.sqrt(1 - np.square(points).sum(axis=-1))
    facing = np.maximum(points[..., 0] * right + points[..., 1] * down + out * front, 0.0)
    coarse = (1 - light.directed + 1.25 * light.directed * facing).astype(np.float32)
    shade = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)[:height, :width]
    levels = 255 * light.gain * np.power(np.arange(256) / 255, light.gamma)
    image = cv2.LUT(canvas.image, np.clip(levels, 0, 255).astype(np.uint8))
    return np.asarray(cv2.multiply(image, shade, dtype=cv2.CV_8U), np.uint8)


def _blend(one: float, other: float, share: float) -> float:
    return one + (other - one) * share

"""Which frames of a video its windows are made of."""

from __future__ import annotations

from enum import StrEnum


class FrameSampling(StrEnum):
    """Which frames of a video become a window; with n frames, f per window and w windows."""

    LAST = "last"
    """The last f frames (the paper, section 4.1). It makes one window."""

    UNIFORM = "uniform"
    """Frames spread evenly over the whole video. w * f positions are spread evenly from the first frame to the
    last; window k takes the positions k, k + w, k + 2w, ... Each window spans nearly the whole video."""

    MIDDLE = "middle"
    """Consecutive frames. The video is cut into w equal segments, and window k lies in the middle of segment k,
    moved as little as necessary to lie within the video."""


def sample_windows(
    available: int, *, frames: int, windows: int, sampling: FrameSampling
) -> tuple[tuple[int, ...], ...]:
    """The frames of each window: numbers in ascending order, from 0.

    A frame appears twice in a window only if the video has fewer frames than a window: then every window is
    the whole video, and repeats its last frame.

    Args:
        available: frames of the video, 1 or more.
        frames: frames per window, 1 or more.
        windows: number of windows, 1 or more; 1 with `last`.
        sampling: how frames are chosen.
    """
    if available <= frames:
        return (tuple(min(number, available - 1) for number in range(frames)),) * windows
    if sampling is FrameSampling.UNIFORM:
        positions = _spread(available, frames * windows)
        return tuple(positions[window::windows] for window in range(windows))
    latest = available - frames
    if sampling is FrameSampling.LAST:
        starts = [latest]
    else:
        centred = (((2 * k + 1) * available - windows * frames) // (2 * windows) for k in range(windows))
        starts = [min(max(start, 0), latest) for start in centred]
    return tuple(tuple(range(start, start + frames)) for start in starts)


def _spread(available: int, count: int) -> tuple[int, ...]:
    """`count` frame numbers spread evenly from the first to the last frame, rounded half up."""
    if count == 1:
        return ((available - 1) // 2,)
    steps = count - 1
    return tuple((2 * i * (available - 1) + steps) // (2 * steps) for i in range(count))

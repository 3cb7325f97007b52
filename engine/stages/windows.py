"""Frames -> Windows: which frames are generated together. Only a plan; computes no frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine.cancel import check
from engine.data import Frames, Plan, Window
from engine.data.cancel import CancelToken

#: Pixel frames in one latent frame of the video autoencoder, after the first.
TEMPORAL = 4
#: Windows between two checks of a cancel token.
_CHECK_EVERY = 1024


def count_windows(frames: int, *, window: int, motion: int) -> int:
    """Return how many windows `plan_windows` makes, without creating them."""
    first = min(window, _round_up(frames))
    return 1 + max(0, -(-(frames - first) // (window - motion)))


def plan_windows(
    frames: int, *, window: int, motion: int, whole: bool = False, cancel: CancelToken | None = None
) -> tuple[Window, ...]:
    """Cover `frames` frames with windows of at most `window` frames that overlap by `motion`.

    Every window except the first repeats the last `motion` frames of the one before and adds new ones. Each is as
    short as possible; its length must be 4n + 1, and surplus frames are dropped, so that the sum of `keep` is exactly
    `frames`. With `whole`, each has `window` frames. `window` and `motion` must be 4n + 1, and motion < window. Raises
    Cancelled once `cancel` is set.
    """
    first = window if whole else min(window, _round_up(frames))
    windows = [Window(index=0, start=0, frames=first, motion=0, keep=min(first, frames))]
    done = windows[0].keep
    while done < frames:
        if len(windows) % _CHECK_EVERY == 0:
            check(cancel, "plan")
        size = window if whole else min(window, _round_up(motion + frames - done))
        keep = min(size - motion, frames - done)
        windows.append(Window(index=len(windows), start=done - motion, frames=size, motion=motion, keep=keep))
        done += keep
    return tuple(windows)


def windows_between(cuts: Sequence[int], frames: int, *, motion: int) -> tuple[Window, ...]:
    """Cover `frames` frames with windows that begin at 0 and at `cuts`, sorted frames of the form 4n + 1.

    As in `plan_windows`, each repeats the last `motion` frames before it, and is as short as possible.
    """
    windows = []
    for index, (begin, end) in enumerate(pairwise([0, *cuts, frames])):
        repeated = motion if index else 0
        size = _round_up(repeated + end - begin)
        windows.append(Window(index, start=begin - repeated, frames=size, motion=repeated, keep=end - begin))
    return tuple(windows)


def generated_frames(frames: int, fps: float, native_fps: float) -> int:
    """Return how many frames at `native_fps` cover the times of `frames` frames at `fps`."""
    return nearest_frame(frames - 1, fps, native_fps) + 1


def nearest_frame(frame: int, fps: float, native_fps: float) -> int:
    """Return the frame at `native_fps` nearest to the time frame / fps."""
    return int(frame * native_fps / fps + 0.5)


def _round_up(frames: int) -> int:
    return -(-(frames - 1) // TEMPORAL) * TEMPORAL + 1


def output_frames(window: Window, frames: int, fps: float, native_fps: float) -> tuple[int, ...]:
    """Return which of the window's new frames are part of the finished video, by index from 0.

    At equal rates that is each of them once. A lower output rate skips some, a higher one repeats some.
    """
    begin = window.start + window.motion
    end = begin + window.keep
    # A frame is selected for times up to half a frame before its own; one more frame allows for rounding.
    output = max(0, int((begin - 0.5) * fps / native_fps) - 1)
    indices = []
    while output < frames and (at := nearest_frame(output, fps, native_fps)) < end:
        if at >= begin:
            indices.append(at - begin)
        output += 1
    return tuple(indices)


def window_shares(plan: Plan) -> list[slice]:
    """Return which frames of the finished video each window of a plan made."""
    shares, end = [], 0
    for window in plan.windows:
        count = len(output_frames(window, plan.frames, plan.fps, plan.generated_fps))
        shares.append(slice(end, end + count))
        end += count
    return shares


def resample(frames: Frames, window: Window, plan: Plan) -> Frames:
    """Return the window's part of the finished video, at the video's rate, from the window's new frames."""
    chosen = output_frames(window, plan.frames, plan.fps, plan.generated_fps)
    return Frames(frames.pictures[list(chosen)], plan.fps)

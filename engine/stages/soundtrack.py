"""The sound that viewers hear instead of the voices, such as the original of voices that were separated from music."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.cancel import apart
from engine.data import Inputs, Media, Plan
from engine.data.cancel import CancelToken
from engine.errors import RequestError
from engine.media.audio import mix_in
from engine.media.tracks import inspect

FIELD = "request.soundtrack"
#: Seconds of silence at the end of the video from which on there is a warning.
_TOLD = 0.1


def with_soundtrack(media: Media, path: Path, *, most: float, cancel: CancelToken | None = None) -> Media:
    """Return `media` with the file of a soundtrack of at most `most` seconds. Raises RequestError and Cancelled."""
    try:
        found = apart(lambda: inspect(path, field=FIELD, max_seconds=most, cancel=cancel), cancel, "read")
    except RequestError as error:
        if error.code != "audio_too_long":
            raise
        hint = "cut it to the video's length, or raise access.max_seconds"
        raise RequestError(f"it is longer than {most:g} seconds", field=FIELD, hint=hint, code=error.code) from error
    warnings = (f"soundtrack: {text}" for text in found.warnings)
    return replace(media, soundtrack=(path, found.cut), warnings=(*media.warnings, *warnings))


def play_soundtrack(inputs: Inputs, media: Media, plan: Plan, *, cancel: CancelToken | None = None) -> Inputs:
    """Return `inputs` with the soundtrack, if there is one, in place of the mix of the voices; it begins at 0.

    Raises RequestError and Cancelled.
    """
    if media.soundtrack is None:
        return inputs
    path, cut = media.soundtrack
    sound = np.zeros_like(inputs.sound)
    damage = mix_in(sound, path, cut, begins=0.0, gain=1.0, field=FIELD, cancel=cancel)
    warnings = [f"soundtrack: {text}" for text in damage]
    if cut.seconds < plan.seconds - _TOLD:
        warnings.append(f"soundtrack: it ends at {cut.seconds:.2f} s, and the video at {plan.seconds:.2f} s in silence")
    return replace(inputs, sound=sound, warnings=(*inputs.warnings, *warnings))

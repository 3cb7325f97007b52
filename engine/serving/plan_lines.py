"""The lines of a plan about its windows: their frames, where they meet, and the prompts and pictures by time."""

from __future__ import annotations

from collections.abc import Sequence

from engine.data import Dialogue, DubPlan, Plan, PlannedCue, Seam, Seams


def window_lines(plan: Plan) -> list[tuple[str, str]]:
    """Return (name, text) of each line; only the first line of a table has a name."""
    return [
        *(("windows" if index == 0 else "", line) for index, line in enumerate(_windows(plan))),
        *([] if plan.seams is None else [("", _seams(plan.seams))]),
        *(("prompts" if index == 0 else "", line) for index, line in enumerate(_cues(plan.prompts))),
        *(("pictures" if index == 0 else "", line) for index, line in enumerate(_cues(plan.images))),
        *(("source" if index == 0 else "", line) for index, line in enumerate(_source(plan.dub))),
    ]


def dialogue_lines(dialogue: Dialogue | None) -> list[tuple[str, str]]:
    """Return (name, text) of each line about the turns of a script or recording; at most six of them."""
    if dialogue is None:
        return []
    lines = [
        f"{turn.begins:.2f} s to {turn.ends:.2f} s: "
        f"{dialogue.people[turn.person] if dialogue.people else turn.person + 1}"
        + (f": {turn.text if len(turn.text) <= 60 else turn.text[:57] + '...'}" if turn.text else "")
        for turn in dialogue.turns
    ]
    shown = lines if len(lines) <= 6 else [*lines[:4], f"... {len(lines) - 5} more ...", lines[-1]]
    turns = "1 turn" if len(lines) == 1 else f"{len(lines)} turns"
    first = f"{turns} by {dialogue.by}" if lines else f"by {dialogue.by}"
    return [("dialogue", first), *(("", line) for line in shown)]


def _windows(plan: Plan) -> list[str]:
    places = {seam.window: seam for seam in plan.seams.seams} if plan.seams is not None else {}
    lines = [
        f"{window.index + 1}: frames {window.start} to {window.start + window.frames - 1}"
        + (f", {window.motion} of them repeated" if window.motion else "")
        + f", {window.keep} kept"
        + (_seam(places[window.index]) if window.index in places else "")
        for window in plan.windows
    ]
    return lines if len(lines) <= 6 else [*lines[:4], f"... {len(lines) - 5} more ...", lines[-1]]


def _seam(seam: Seam) -> str:
    where = "a pause" if seam.pause else "speech, no pause within reach"
    return f"; begins at {seam.seconds:.2f} s in {where} ({seam.level:.0f} dB)"


def _seams(seams: Seams) -> str:
    quiet = sum(seam.pause for seam in seams.seams)
    cuts = "1 cut" if len(seams.seams) == 1 else f"{len(seams.seams)} cuts"
    own = f"{quiet} of {cuts} in pauses; {seams.windows} windows with {seams.computed} frames are computed"
    fixed = (
        f"{seams.fixed_pauses} of {seams.fixed_windows - 1}, {seams.fixed_windows} windows with {seams.fixed_computed}"
    )
    return f"windows=pauses: {own}; windows=fixed: {fixed}"


def _cues(cues: Sequence[PlannedCue]) -> list[str]:
    return [
        f"{index}: from {cue.requested:g} s becomes window {cue.window + 1}, {cue.begins:.2f} s"
        if f"{cue.requested:.2f}" != f"{cue.begins:.2f}"
        else f"{index}: from {cue.begins:.2f} s, window {cue.window + 1}"
        for index, cue in enumerate(cues, start=1)
    ]


def _source(dub: DubPlan | None) -> list[str]:
    if dub is None:
        return []
    sound = "its sound is left out" if dub.sound_level is None else f"its sound is heard at {dub.sound_level:g} dB"
    kept = "all outside the people who speak is kept" if dub.mode == "keep" else "each window sees its first frame"
    lines = [
        f"{dub.size[0]} x {dub.size[1]}, {dub.fps:g} fps, {dub.seconds:.2f} s; dub.mode={dub.mode}: {kept}; {sound}"
    ]
    if dub.cuts == "find":
        begins = [f"window {index + 1} from {seconds:.2f} s" for index, seconds in dub.scenes]
        more = ", ..." if len(begins) > 6 else ""
        count = f"{len(begins)} cut{'s'[: len(begins) != 1]}" if begins else "no cuts"
        lines.append(f"{count}{': ' if begins else ''}{', '.join(begins[:6])}{more}")
    return lines

"""A request with a script or a recording of several people -> one with a voice for each; and what the network hears."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.assembly.access import request_access
from engine.cancel import apart, check
from engine.components import CancelToken, Diariser, Speech
from engine.config import Config
from engine.data import Access, Inputs, Media, Plan, Request
from engine.errors import EngineError, RequestError
from engine.plugin.manager import Registry
from engine.stages.addresses import bring_file
from engine.stages.divide import by_channels, divide
from engine.stages.read import check_request, read
from engine.stages.script import parse_script
from engine.stages.soundtrack import play_soundtrack
from engine.stages.speak import speak


def voiced(
    request: Request,
    config: Config,
    registry: Registry,
    access: Access,
    folder: Path,
    *,
    cancel: CancelToken | None = None,
) -> Request:
    """Return the request with a speaker for each person of its script or recording, and their voices in `folder`.

    A request with neither, or one that was returned here, is returned unchanged. Raises RequestError, MissingExtra,
    ConfigError and Cancelled.
    """
    if request.made is not None or not (request.script or request.voices):
        return request
    check_request(request)
    if request.script:
        found = _spoken(request, config, registry, access, folder, cancel)
    else:
        found = _divided(request, config, registry, access, folder, cancel)
    if request.keep_voices:
        _keep(found, Path(request.keep_voices))
    return found


def usable_voices(config: Config, registry: Registry) -> dict[str, Any]:
    """Return which voices a request may be made of, as `capabilities` has it: what is installed.

    `diarisers` has (name, by_channel) of each diariser that can run here, `diariser` is the one of the config, and
    `speech` what speaks scripts; None: it is not installed.
    """
    found = []
    for name in registry.diarisers.names():
        diariser = registry.diarisers.build_default(name)
        if _runs(diariser):
            found.append({"name": name, "by_channel": diariser.by_channel})
    speaks = _runs(registry.speech.build(config.speech))
    return {
        "diarisers": found,
        "diariser": config.diariser.name,
        "speech": config.speech.name if speaks else None,
    }


def _runs(component: Diariser | Speech) -> bool:
    try:
        component.check()
    except EngineError:
        return False
    return True


def read_for_network(
    request: Request, media: Media, plan: Plan, config: Config, registry: Registry, *, cancel: CancelToken | None = None
) -> Inputs:
    """Decode the media as `engine.stages.read.read` does, and filter the voices that the network hears.

    The sound track keeps the original sound, or is the request's own. Raises as `read`, and MissingExtra.
    """
    inputs = play_soundtrack(read(request, media, plan, cancel=cancel), media, plan, cancel=cancel)
    vocals = registry.vocals.build(config.vocals)
    if not vocals.filters:
        return inputs
    vocals.check()
    voices, warnings = [], list(inputs.warnings)
    for index, voice in enumerate(inputs.voices):
        cleaned, told = (
            (voice, "")
            if not voice.any()
            else apart(partial(vocals.clean, voice, cancel=cancel), cancel, "read", grace=0.5)
        )
        voices.append(cleaned)
        if told:
            warnings.append(f"speakers[{index}]: {told}")
    return replace(inputs, voices=tuple(voices), warnings=tuple(warnings))


def _spoken(
    request: Request, config: Config, registry: Registry, access: Access, folder: Path, cancel: CancelToken | None
) -> Request:
    script = parse_script(request.script)
    speech = registry.speech.build(config.speech)
    speech.check()
    return speak(
        request,
        script,
        speech,
        by=f"speech={config.speech.name}",
        gap=config.speech.gap,
        most=min(access.max_seconds, request.budget.seconds),
        into=folder,
        cancel=cancel,
    )


def _divided(
    request: Request, config: Config, registry: Registry, access: Access, folder: Path, cancel: CancelToken | None
) -> Request:
    check(cancel, "read")
    opener = registry.plugins.hook.open_address
    within = replace(request_access(access, request), cancel=cancel)
    path = apart(
        partial(bring_file, request.voices, "request.voices", opener, within, folder), cancel, "read", grace=0.5
    )
    by = f"diariser={config.diariser.name}"
    diariser = registry.diarisers.build(config.diariser)
    diariser.check()
    if diariser.by_channel:
        return by_channels(request, path, by=by, most=access.max_seconds, cancel=cancel)
    return divide(request, path, diariser, by=by, most=access.max_seconds, into=folder, cancel=cancel)


def _keep(request: Request, folder: Path) -> None:
    """Copy the voices to `folder`, named by the people. Raises RequestError if it cannot be written."""
    made = request.made
    assert made is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, speaker in enumerate(request.speakers):
            if (path := made.files.get(speaker.audio or "")) is None:
                continue
            name = made.dialogue.people[index] if made.dialogue.people else f"person-{index + 1}"
            shutil.copyfile(path, folder / f"{index + 1}-{name}{path.suffix}")
    except OSError as error:
        what = f"the voices cannot be written: {error.strerror}"
        raise RequestError(what, field="request.keep_voices", hint="give a folder that can be written") from error

"""`multitalk show` and `multitalk again`: print the provenance of a video, and make the video again from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.assembly.escape import override, quoted
from engine.assembly.location import WeightsFinder, locate_weights
from engine.assembly.model_settings import model_overrides, other_settings
from engine.assembly.plan_request import fetch_media, plan_media
from engine.assembly.provenance import (
    DECISIVE,
    FORMAT,
    JUDGING,
    compiled_by,
    groups_of,
    input_hashes,
    norms_by,
    recording_hash,
    versions,
    weights_hash,
)
from engine.assembly.voices import voiced
from engine.cli.parser import REQUEST, Flag, Parser, add_own_flags, add_request_flags, read_arguments
from engine.cli.provenance_check import check_form, is_deep, other_sound, suspicious_values, with_people, with_sound
from engine.cli.run import launch
from engine.cli.settings import settings_again
from engine.config import Config, EntrypointConfig
from engine.data import Media, Region, Request, Speaker
from engine.errors import RequestError, plain
from engine.files.scratch import scratch
from engine.media.excerpts import KEYS, values_of
from engine.plugin.manager import installed
from engine.redaction import redact
from engine.service import EngineService
from engine.serving.jobs.speakers import SILENCE
from engine.serving.jobs.timeline import parse_timeline, plain_timeline
from engine.stages.read import hear
from engine.text.terminal import columns, hanging, tell

_MEDIA = (
    Flag("image", "FILE", "the picture; if there were several by time, each in their order", many=True),
    *(flag for flag in REQUEST if flag.key in ("video", "audio", "voices", "keep_voices", "soundtrack")),
    Flag("mask", "FILE", "a mask picture, once for each person who had one", many=True),
)
#: Groups and keys that the provenance decides; of these, keys that only say where the weights are.
_FIXED = (
    *(
        "model",
        "recipe",
        "experiment",
        "parallel",
        "request",
        "dtype",
        "residual_dtype",
        "kernels",
        "windows",
        "vae",
        "dub",
        "speech",
        "diariser",
        "vocals",
    ),
    *("memory.tile", *DECISIVE, *JUDGING),
)
_WHERE = ("model.folder", "model.packaged")
#: Largest width of the column of keys.
_WIDEST = 60


def show(path: Path, *, as_json: bool) -> int:
    """Print the provenance in the MP4 at `path`. Raises RequestError if there is none."""
    provenance = load(path)
    if as_json:
        print(json.dumps(provenance).replace("\x7f", "\\u007f"))
        return 0
    # Keys and values are untrusted text.
    rows = [(plain(key), plain(value)) for key, value in _rows(provenance, "")]
    width = min(_WIDEST, max(len(key) for key, _ in rows))
    for key, value in rows:
        print("\n".join(hanging(f"{key:<{width}}  ", value, columns(), style="cyan")))
    return 0


def load(path: Path) -> dict[str, Any]:
    """Return the provenance in the MP4 at `path`. Raises RequestError if there is none that can be read."""
    from engine.stages.write import read_provenance

    if not path.is_file():
        raise RequestError(f"{str(path)!r} is not a file", field="FILE.mp4", hint="give a video that the engine made")
    provenance = dict(read_provenance(path))
    if is_deep(provenance):
        raise RequestError(
            f"the provenance in {str(path)!r} is nested too deeply, or too long",
            field="FILE.mp4",
            hint="give a video as the engine wrote it",
        )
    if provenance.get("format") != FORMAT:
        raise RequestError(
            f"{str(path)!r} has provenance of format {str(provenance.get('format'))[:40]}",
            field="FILE.mp4",
            hint=f"this engine reads format {FORMAT}",
        )
    return provenance


def again(arguments: Sequence[str]) -> int:
    """Make a video again. `arguments`: its file, its media (not part of the provenance), flags and overrides."""
    parser = Parser(
        prog="multitalk again",
        usage="multitalk again FILE.mp4 --image FILE --audio FILE ... [flags] key=value ...",
        description="Make a video again from its provenance.\n"
        "The bytes are the same if media, weights, versions and threads are; a warning says what differs.",
    )
    add_flags(parser)
    return launch(repeat(parser, arguments))


def add_flags(parser: Parser) -> None:
    """Add the flags of a command that makes a video again."""
    add_request_flags(parser, _MEDIA)
    add_own_flags(parser, installed().entrypoints.config("generate"))


def repeat(
    parser: Parser, arguments: Sequence[str], check: Callable[[Mapping[str, Any]], None] | None = None
) -> list[str]:
    """Return the overrides that make a video again, from arguments of `parser`, which has all flags.

    `check` may refuse the provenance. Prints warnings about everything that differs from when the video was made.
    Raises EngineError.
    """
    values, rest = parser.read(arguments)
    if not rest or "=" in rest[0]:
        raise RequestError("no video", field="FILE.mp4", hint=f"see {parser.prog} --help")
    provenance = load(Path(rest[0]))
    if check is not None:
        check(provenance)
    media = {flag.key: getattr(values, flag.key) for flag in _MEDIA}
    for key in media:
        setattr(values, key, None)
    for argument in rest[1:]:
        if _is_fixed(argument):
            raise RequestError(
                f"{argument!r} would change what the provenance says",
                field="command line",
                hint="choose only sink, source, attention, memory, compile and device here, or use generate",
            )
    own = read_arguments("generate", parser, values, rest[1:])
    try:
        check_form(provenance)
        media = {key: value or [] for key, value in media.items()}
        request = _request(provenance, media["image"], media["audio"], media["mask"], video=media["video"] or "")
        request = with_people(request, provenance, media["voices"] or "", media["keep_voices"] or "")
        request = with_sound(request, provenance, media["soundtrack"] or "")
        overrides = [own.overrides[0], *settings_again(own.overrides, _is_fixed), *own.overrides[1:]]
        overrides += provenance_overrides(provenance, request)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"the provenance in {rest[0]!r} is damaged ({type(error).__name__}: {error})",
            field="FILE.mp4",
            hint="give a video as the engine wrote it",
        ) from error
    # Before any file that the provenance names is opened.
    for warning in suspicious_values(provenance):
        tell("warning", plain(warning))
    for warning in differences(provenance, overrides, request):
        tell("warning", plain(warning))
    return EntrypointConfig.boot(overrides)


def _is_fixed(argument: str) -> bool:
    key = argument.lstrip("+~").partition("=")[0]
    return key not in _WHERE and (key in _FIXED or key.partition(".")[0] in _FIXED)


def provenance_overrides(provenance: Mapping[str, Any], request: Request) -> list[str]:
    """Return the overrides for the config of `provenance` and for `request`."""
    overrides = [f"model={quoted('model', provenance['model'])}"]
    settings, sampler = provenance.get("model_settings", {}), provenance["sampler"]
    bundle = sampler.get("bundle", "") if isinstance(sampler, Mapping) else ""
    overrides += model_overrides(settings, str(provenance["resolution"]), str(bundle))
    for group in (*groups_of(provenance), "dtype"):
        value = provenance[group]
        if value is None:
            raise ValueError(f"{group} is empty")
        if not isinstance(value, Mapping):
            overrides.append(f"{group}={_value(group, value)}")
            continue
        if "name" in value:
            overrides.append(f"{group}={quoted(group, value['name'])}")
        overrides += [f"{group}.{_key(key)}={_value(group, part)}" for key, part in value.items() if key != "name"]
    overrides.append(f"windows={quoted('windows', provenance.get('windows', 'fixed'))}")
    overrides.append(f"residual_dtype={quoted('residual_dtype', provenance.get('residual_dtype', 'float32'))}")
    if provenance.get("kernels") == "eager":
        # "triton" is what "auto" chooses where Triton can run; elsewhere there is a warning.
        overrides.append("kernels=eager")
    if "report" not in provenance:
        # Made before windows were judged: a report would change its bytes.
        overrides.append("report.enabled=false")
    overrides.append(f"memory.tile={int(provenance.get('tile', 0))}")
    # Before there was a choice, all decoding was in float32.
    overrides.append(f"vae.decode_dtype={quoted('decode_dtype', provenance.get('decode_dtype', 'float32'))}")
    speakers = [
        {
            **({"silence": True} if speaker.audio is None else {"audio": speaker.audio}),
            **({"region": {"box": speaker.region.box}} if speaker.region.box else {}),
            **({"region": {"mask": speaker.region.mask}} if speaker.region.mask else {}),
            **{key: value for key, value in values_of(speaker).items() if value is not None},
        }
        for speaker in request.speakers
    ]
    for key, cues in (("prompts", request.prompts), ("images", request.images)):
        if cues:
            overrides.append(override(f"request.{key}", json.dumps({key: plain_timeline(cues, key)})))
    if request.script:
        # Stored with a line break at its end, so it is the text itself and no file.
        overrides.append(override("request.script", request.script))
    elif not request.voices:
        overrides.append(override("request.speakers", json.dumps({"speakers": speakers})))
    else:
        overrides.append(f"request.people={request.people}")
        if request.boxes:
            overrides.append(override("request.boxes", json.dumps(request.boxes)))
    for key in (
        "voices",
        "keep_voices",
        "soundtrack",
        "image",
        "video",
        "prompt",
        "negative_prompt",
        "seed",
        "frames",
        "fps",
        "audio_type",
        "timing",
        "fit",
    ):
        # Empty: there is a timeline instead.
        if (value := getattr(request, key)) is not None and (value != "" or key == "negative_prompt"):
            overrides.append(override(f"request.{key}", str(value)))
    return overrides


def differences(provenance: Mapping[str, Any], overrides: Sequence[str], request: Request) -> list[str]:
    """Return warnings about everything that differs from when the video was made. Raises EngineError."""
    import torch

    from engine.pipeline import Engine

    service = EngineService(overrides)
    registry = installed()
    then, lines = provenance["inputs"], []
    with scratch() as folder:
        request = voiced(request, service.config, registry, service.access, folder)
        media = fetch_media(request, registry, service.access, folder)
        if (now := {**input_hashes(media), **recording_hash(request)}) == then:
            lines += _other_windows(provenance, request, media, service.config)
    hashes = zip([then["image"], *then.get("images", ())], [now["image"], *now.get("images", ())], strict=True)
    addresses = [cue.value for cue in request.images] or [request.image or request.video]
    for address, (one, other) in zip(addresses, hashes, strict=True):
        if one != other:
            what = "source video" if request.video else "picture"
            lines.append(f"{redact(address)} is not the {what} that the video was made from")
    lines += other_sound(then, now, request)
    for key, what in (("voices", "voice"), ("masks", "mask")):
        for index, (one, other) in enumerate(zip(then[key], now[key], strict=True)):
            if one != other:
                lines.append(f"the {what} of speaker {index + 1} is not the one that the video was made from")
    if provenance["weights"] != weights_hash(locate_weights(service.config, registry)):
        lines.append("the weights are not those that the video was made with")
    lines += [
        f"its windows from {made['window']} on were made again with seed {made['seed']}; this makes the first ones"
        for made in provenance.get("made_again") or ()
    ]
    installed_now = versions()
    for package, version in provenance["versions"].items():
        if installed_now.get(package) != version:
            lines.append(f"{package} was {version} and is {installed_now.get(package, 'absent')}")
    if provenance["threads"] != torch.get_num_threads():
        lines.append(f"it was made with {provenance['threads']} threads, now there are {torch.get_num_threads()}")
    if provenance.get("processes", 1) != 1:
        lines.append(f"it was made by {provenance['processes']} processes, now there is one")
    lines += other_settings(provenance.get("model_settings", {}), service.config)
    engine = Engine(service.config, registry)
    runtime, compiled = engine.runtime, compiled_by(service.config)
    for key, value in (("device", runtime.device), ("attention", runtime.attention), ("compile", compiled)):
        if (before := provenance.get(key, "none")) != value:
            lines.append(f"its {key} was {before!r}, now it is {value!r}")
    kernels = norms_by(service.config, runtime.device)
    if runtime.device == "cuda" and (before := provenance.get("kernels", kernels)) != kernels:
        lines.append(f"its kernels were {before!r}, now they are {kernels!r}")
    return lines


def _other_windows(provenance: Mapping[str, Any], request: Request, media: Media, config: Config) -> list[str]:
    """Return a warning if the number of windows in the video's report is not that of its plan."""
    judged = provenance.get("judged")
    before = judged.get("windows") if isinstance(judged, Mapping) else None
    if config.windows == "pauses":
        media = hear(request, media, config.model.fps)
    now = len(plan_media(request, media, config, installed(), WeightsFinder(installed())).windows)
    if not isinstance(before, int) or before == now:
        return []
    why = (
        ""
        if "model_settings" in provenance
        else ": it was made with keys such as model.window, which it does not store"
    )
    return [f"it has {before} window{'s' * (before != 1)}, and its settings plan {now}{why}"]


def _request(
    provenance: Mapping[str, Any],
    images: Sequence[str],
    audio: Sequence[str],
    masks: Sequence[str],
    *,
    video: str = "",
) -> Request:
    recorded = provenance["request"]
    voices = [address for address in audio if address != SILENCE]
    speaking = sum(not speaker["silence"] for speaker in recorded["speakers"])
    masked = sum(speaker["mask"] for speaker in recorded["speakers"])
    pictures = recorded.get("images", ())
    if bool(video) is not (dubbed := bool(recorded.get("video"))):
        what = "it was made from a source video" if dubbed else "it was made from a picture, not from a source video"
        hint = "give the source video again with --video FILE" if dubbed else "give it again with --image FILE"
        raise RequestError(what, field="request.video", hint=hint)
    if not images and not video:
        raise RequestError("no picture", field="request.image", hint="give the picture again with --image FILE")
    if len(images) != (wanted := 0 if dubbed else max(1, len(pictures))):
        what = f"{len(images)} pictures given, the video has {wanted}"
        raise RequestError(what, field="request.image", hint="give each picture again with --image FILE")
    if not voices and ("script" in recorded or "people" in recorded):
        recorded = {**recorded, "speakers": ()}
    elif len(voices) != speaking:
        raise RequestError(
            f"{len(voices)} voices given, the video has {speaking}",
            field="request.audio",
            hint="give each voice again with --audio FILE",
        )
    if len(masks) != masked:
        raise RequestError(
            f"{len(masks)} masks given, the video has {masked}", field="request.mask", hint="give each with --mask FILE"
        )
    voice, mask = iter(voices), iter(masks)
    speakers = tuple(
        Speaker(
            None if speaker["silence"] else next(voice),
            Region(
                box=None if speaker["box"] is None else tuple(speaker["box"]),
                mask=next(mask) if speaker["mask"] else None,
            ),
            **{key: speaker[key] for key in KEYS if key in speaker},
        )
        for speaker in recorded["speakers"]
    )
    texts = {key: recorded[key] for key in ("prompt", "negative_prompt", "seed", "frames", "fps")}
    choices = {key: recorded[key] for key in ("audio_type", "timing", "fit")}
    prompts = parse_timeline(recorded["prompts"], "prompts") if "prompts" in recorded else ()
    if not pictures:
        image = "" if dubbed else images[0]
        return Request(image=image, video=video, speakers=speakers, prompts=prompts, **texts, **choices)
    entries = [{**entry, "image": image} for entry, image in zip(pictures, images, strict=True)]
    by_time = parse_timeline(entries, "images")
    return Request(image="", speakers=speakers, prompts=prompts, images=by_time, **texts, **choices)


def _value(key: str, value: Any) -> str:
    if isinstance(value, str):
        return quoted(key, value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_value(key, part) for part in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_key(name)}:{_value(key, part)}' for name, part in value.items())}}}"
    return json.dumps(value)


def _key(key: str) -> str:
    if not re.fullmatch(r"\w+", key):
        raise ValueError(f"{key!r} is not a key")
    return key


def _rows(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _rows(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, part in enumerate(value):
            yield from _rows(part, f"{key}[{index}]")
    else:
        yield key, value if isinstance(value, str) and value else json.dumps(value)

"""Config and registry -> Settings: what the planner needs to know, and where the weights are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from engine.assembly.sampling import choose
from engine.components import FetchingSource, evaluations_of
from engine.config import Config, ContinuationModelConfig, EntrypointConfig, FolderConfig
from engine.config.bounds import check_numbers, check_part
from engine.data import Access, Request, Settings, Weights
from engine.errors import ConfigError, MissingExtra, MissingWeights, SourceError, UnknownComponent
from engine.hub.offers import offers
from engine.net.s3 import Bucket
from engine.plugin.manager import Registry

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")


def make_settings(config: Config, registry: Registry, *, weights: Path | None = None) -> Settings:
    """Return the facts and choices that decide windows and forwards. Raises ConfigError; missing weights are noted.

    `weights` is their folder where they are loaded: then nothing is looked for, which reads headers of all files.
    """
    model = config.model
    _check(config)
    choices = choose(config, registry)
    absent = ""
    try:
        weights = weights or locate_weights(config, registry)
    except (SourceError, MissingExtra) as error:
        # A source that has the model in another form than the config reads says so in its own field.
        missing = error.field in (None, "", "source")
        absent = f"yet: {'; '.join(filter(None, (error.what, error.hint)))}" if missing else f"by this config: {error}"
    table = model.resolutions[config.resolution]
    return Settings(
        model=model.name,
        resolution=config.resolution,
        buckets={key: _size(config, key, size) for key, size in table.buckets.items()},
        native_fps=model.fps,
        window=model.window,
        motion=config.continuation.frames,
        sampler=f"{config.sampler.name} ({config.sampler.bundle})",
        steps=config.sampler.steps,
        evaluations=sum(evaluations_of(choices.sampler, config.sampler.steps)),
        guidance=config.guidance.name,
        passes=len(choices.guidance.branches),
        untrained=weights is not None and _untrained(weights),
        weights=weights,
        absent=absent,
        tile=config.memory.tile,
        holds=_holds(model.continuation) if config.continuation.style == "multitalk" else None,
    )


def _holds(continuation: ContinuationModelConfig) -> tuple[float, str, str]:
    return continuation.multitalk_seconds, continuation.multitalk_seconds_by, continuation.instead


def largest_window(config: Config) -> tuple[int, int, int]:
    """Return frames, height and width of the largest window that the model makes at the config's resolution."""
    buckets = config.model.resolutions[config.resolution].buckets.values()
    height, width = max(buckets, key=lambda size: size[0] * size[1], default=(480, 832))
    return config.model.window, height, width


def make_access(config: Config) -> Access:
    """Return what a request's addresses may reach. Raises ConfigError. Credentials are in no config."""
    access = config.access
    check_part(access, "access")
    named = [bucket for bucket in access.buckets if bucket]
    # An endpoint may have the bucket in its host, as RunPod's has.
    place = Bucket(named[0] if named else "", endpoint_url=access.endpoint_url)
    return Access(
        schemes=tuple(access.schemes),
        folders=None if access.folders is None else tuple(Path(folder) for folder in access.folders),
        max_bytes=access.max_bytes,
        timeout=access.timeout,
        total_timeout=access.total_timeout,
        max_pixels=access.max_pixels,
        max_seconds=access.max_seconds,
        private_hosts=tuple(access.private_hosts),
        buckets=tuple(named or filter(None, [place.name])),
        endpoint_url=place.endpoint_url,
        region=access.region or None,
    )


def check_parallel(config: Config) -> None:
    """Raise ConfigError where several processes and the rest of the config do not go together."""
    parallel, entrypoint = config.parallel, config.entrypoint
    if parallel.name not in ("none", "ulysses"):
        raise UnknownComponent("parallel", parallel.name, ("none", "ulysses"))
    if parallel.name == "none":
        if parallel.run is not None and (parallel.size or 1) > 1:
            raise ConfigError(
                f"torchrun started {parallel.size} processes, and each would do all of the work",
                field="parallel",
                hint="choose parallel=ulysses, or start without torchrun",
            )
    elif not (isinstance(entrypoint, EntrypointConfig) and entrypoint.parallel):
        raise ConfigError(
            f"{entrypoint.name} does not work on several devices", field="parallel", hint="choose parallel=none"
        )


def request_access(access: Access, request: Request) -> Access:
    """Return what this request's addresses may reach: with keys of its own it reads s3:// by those alone."""
    return access if request.store is None else replace(access, credentials=request.store.credentials)


def locate_weights(config: Config, registry: Registry, *, fetch: bool = False) -> Path:
    """Return the folder of the model's weights. Raises MissingWeights naming where was looked and what would help.

    With `fetch` a source that may get weights does so; without it nothing is changed anywhere.
    """
    wanted = weights_of(config)
    source = registry.sources.build(config.source)
    found = source.fetch(wanted) if fetch and isinstance(source, FetchingSource) else source.locate(wanted)
    if found is None:
        raise MissingWeights(
            f"no weights for the model {config.model.name!r}",
            # As the chain joins what its sources say.
            looked=source.looked(wanted).split("; "),
            commands=wanted.commands,
            hint="choose another source or model",
        )
    return found


def weights_of(config: Config) -> Weights:
    """Return which weights a config needs."""
    model, commands = config.model, _commands(config)
    return Weights(
        model.name,
        model.folder,
        COMPONENTS,
        packaged=model.packaged,
        command=commands[0][0] if commands else "",
        commands=commands,
        adapter=model.adapter,
        quant=config.quant.name,
        file=config.quant.file,
    )


def _commands(config: Config) -> tuple[tuple[str, str], ...]:
    model, source = config.model, config.source
    if model.packaged or model.command:
        return ((model.command, ""),) if model.command else ()
    into = Path(source.path).expanduser() if isinstance(source, FolderConfig) else None
    words = {"model": model.name, "model.folder": model.folder, "quant": config.quant.name}
    return offers(words | {"resolution": config.resolution}, into)


def _check(config: Config) -> None:
    """Raise ConfigError for values that are of the right type and cannot be meant."""
    # Of a config that was put together in Python, too.
    check_numbers(config)
    for field, frames in (("model.window", config.model.window), ("continuation.frames", config.continuation.frames)):
        if frames < 1 or frames % 4 != 1:
            raise ConfigError(f"{frames} is not of the form 4n + 1", field=field, hint="such as 9, 25 or 81")
    if config.continuation.frames >= config.model.window:
        raise ConfigError(
            f"{config.continuation.frames} motion frames leave nothing new in a window of {config.model.window}",
            field="continuation.frames",
            hint=f"less than {config.model.window}",
        )
    # Each window repeats them: with more, the work for a video grows without bound.
    most = max(config.model.continuation.frames, (config.model.window + 1) // 2)
    if config.continuation.frames > most:
        raise ConfigError(
            f"{config.continuation.frames} motion frames are more than half of a window of {config.model.window}",
            field="continuation.frames",
            hint=f"at most {most}",
            code="out_of_range",
        )
    if config.continuation.blend > config.model.window:
        raise ConfigError(
            f"{config.continuation.blend} is out of range",
            field="continuation.blend",
            hint=f"0 to {config.model.window}",
        )


def _size(config: Config, key: str, size: list[int]) -> tuple[int, int]:
    if len(size) != 2 or any(side < 16 or side % 16 for side in size):
        raise ConfigError(
            f"{size} is no size",
            field=f"model.resolutions.{config.resolution}.buckets.{key}",
            hint="[height, width], multiples of 16",
        )
    return size[0], size[1]


def _untrained(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "model_index.json").read_text("utf-8")).get("untrained"))
    except (OSError, ValueError, AttributeError):
        return False

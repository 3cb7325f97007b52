"""Config -> PlanInputs, the planner's input; and checks that the config's values fit together."""

from __future__ import annotations

import json
from pathlib import Path

from engine.assembly.compiling import check_compile
from engine.assembly.location import WeightsFinder
from engine.assembly.sampling import build_sampling
from engine.components import evaluations_of
from engine.config import Config, ContinuationModelConfig, EntrypointConfig
from engine.config.bounds import check_numbers
from engine.data import PlanInputs
from engine.errors import ConfigError, UnknownComponent
from engine.plugin.manager import Registry

#: The ways in which processes share a video.
WAYS = ("none", "ulysses", "guidance")


def make_plan_inputs(config: Config, registry: Registry, weights: WeightsFinder) -> PlanInputs:
    """Return the values that determine windows and forwards. Raises ConfigError; missing weights are only noted."""
    model = config.model
    _check(config)
    sampling = build_sampling(config, registry)
    first, others = sampling.all_forwards(config.sampler.steps)
    location = weights.find(config)
    absent = ""
    if (error := location.problem) is not None:
        # A field other than "source": the weights exist, but in another format than the config reads.
        missing = error.field in (None, "", "source")
        absent = f"yet: {'; '.join(filter(None, (error.what, error.hint)))}" if missing else f"by this config: {error}"
    table = model.resolutions[config.resolution]
    return PlanInputs(
        model=model.name,
        resolution=config.resolution,
        buckets={key: _size(config, key, size) for key, size in table.buckets.items()},
        native_fps=model.fps,
        window=model.window,
        motion=config.continuation.frames,
        sampler=f"{config.sampler.name} ({config.sampler.bundle})",
        steps=config.sampler.steps,
        evaluations=sum(evaluations_of(sampling.sampler, config.sampler.steps)),
        guidance=config.guidance.name,
        passes=len(sampling.guidance.branches),
        forwards=sum(first),
        others=sum(others),
        negative=bool({"drop_text", "uncond"} & set(sampling.guidance.branches)),
        untrained=location.folder is not None and _is_untrained(location.folder),
        weights=location.folder,
        absent=absent,
        tile=config.memory.tile,
        style=config.continuation.style,
        windows=config.windows,
        dubs=config.family.dubs,
        dub=config.dub.mode,
        dub_cuts=config.dub.cuts,
        dub_level=config.dub.sound_level if config.dub.sound == "under" else None,
        retakes=config.retake.max,
        whole_windows=model.whole_windows,
        speakers=model.made_for.speakers,
        holds=_holds(model.continuation) if config.continuation.style == "multitalk" else None,
    )


def _holds(continuation: ContinuationModelConfig) -> tuple[float, str, str]:
    return continuation.multitalk_seconds, continuation.multitalk_seconds_by, continuation.instead


def largest_window(config: Config) -> tuple[int, int, int]:
    """Return frames, height and width of the largest window that the model makes at the config's resolution."""
    buckets = config.model.resolutions[config.resolution].buckets.values()
    height, width = max(buckets, key=lambda size: size[0] * size[1], default=(480, 832))
    return config.model.window, height, width


def check_parallel(config: Config) -> None:
    """Raise ConfigError if several processes and the rest of the config do not fit together."""
    parallel, entrypoint = config.parallel, config.entrypoint
    if parallel.name not in WAYS:
        raise UnknownComponent("parallel", parallel.name, WAYS)
    if parallel.name == "none":
        if parallel.run is not None and (parallel.size or 1) > 1:
            raise ConfigError(
                f"torchrun started {parallel.size} processes, and each would do the whole work",
                field="parallel",
                hint="choose parallel=ulysses or parallel=guidance, or start without torchrun",
            )
    elif isinstance(entrypoint, EntrypointConfig) and entrypoint.leads:
        if parallel.run is not None:
            raise ConfigError(
                f"{entrypoint.name} starts the processes of parallel={parallel.name} itself",
                field="parallel",
                hint="start it without torchrun",
            )
    elif not (isinstance(entrypoint, EntrypointConfig) and entrypoint.parallel):
        raise ConfigError(
            f"{entrypoint.name} does not work on several devices", field="parallel", hint="choose parallel=none"
        )


def _check(config: Config) -> None:
    """Raise ConfigError for values that have the right type but are out of range."""
    # Needed for a config that was built in Python.
    check_numbers(config)
    check_compile(config)
    _check_made_for(config)
    for field, frames in (("model.window", config.model.window), ("continuation.frames", config.continuation.frames)):
        if frames < 1 or frames % 4 != 1:
            raise ConfigError(
                f"{frames} is not of the form 4n + 1", field=field, hint="give a value such as 9, 25 or 81"
            )
    if config.windows == "pauses" and config.model.whole_windows:
        raise ConfigError(
            f"windows=pauses makes windows shorter, and model={config.model.name} makes only whole ones",
            field="windows",
            hint="choose windows=fixed",
            code="conflict",
        )
    if config.continuation.frames >= config.model.window:
        raise ConfigError(
            f"{config.continuation.frames} motion frames leave no new frames in a window of {config.model.window}",
            field="continuation.frames",
            hint=f"give less than {config.model.window}",
        )
    # Each window repeats them: with more, the work per video grows without bound.
    most = max(config.model.continuation.frames, (config.model.window + 1) // 2)
    if config.continuation.frames > most:
        raise ConfigError(
            f"{config.continuation.frames} motion frames are more than half of a window of {config.model.window}",
            field="continuation.frames",
            hint=f"at most {most}",
            code="out_of_range",
        )
    if config.retake.max and not config.report.enabled:
        raise ConfigError(
            "windows that are not judged cannot be made again",
            field="retake.max",
            hint="give 0, or report.enabled=true",
        )
    if config.continuation.blend > config.model.window:
        raise ConfigError(
            f"{config.continuation.blend} is out of range",
            field="continuation.blend",
            hint=f"0 to {config.model.window}",
        )


def _check_made_for(config: Config) -> None:
    """Raise ConfigError for a way of sampling that a distilled model was not made for."""
    made_for, model, sampler = config.model.made_for, config.model.name, config.sampler
    if made_for.samplers and sampler.name not in made_for.samplers:
        raise ConfigError(
            f"model={model} was distilled for sampler={made_for.samplers[0]}, not for {sampler.name}",
            field="sampler",
            hint="leave it out, or choose sampler=standard or sampler=turbo, which are the model's own",
        )
    if made_for.steps and sampler.steps not in made_for.steps:
        allowed = " or ".join(map(str, made_for.steps))
        raise ConfigError(
            f"model={model} was distilled for {allowed} steps, not for {sampler.steps}",
            field="sampler.steps",
            hint=f"give {allowed}, or leave it out",
            code="out_of_range",
        )
    if not made_for.guidance:
        for key in ("text_scale", "audio_scale"):
            if (scale := getattr(config.guidance, key)) != 1:
                raise ConfigError(
                    f"model={model} was distilled without guidance, and the scale is {scale:g}",
                    field=f"guidance.{key}",
                    hint="give 1, or leave it out",
                    code="out_of_range",
                )
    if not made_for.caches and config.cache.name != "none":
        raise ConfigError(
            f"model={model} has only {sampler.steps} steps, and cache={config.cache.name} would skip some of them",
            field="cache",
            hint="choose cache=none",
        )


def _size(config: Config, key: str, size: list[int]) -> tuple[int, int]:
    if len(size) != 2 or any(side < 16 or side % 16 for side in size):
        raise ConfigError(
            f"{size} is not a valid size",
            field=f"model.resolutions.{config.resolution}.buckets.{key}",
            hint="[height, width], multiples of 16",
        )
    return size[0], size[1]


def _is_untrained(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "model_index.json").read_text("utf-8")).get("untrained"))
    except (OSError, ValueError, AttributeError):
        return False

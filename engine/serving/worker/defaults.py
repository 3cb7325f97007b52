"""The overrides that a worker boots with: its defaults and those of its environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

from engine.errors import ConfigError
from engine.hub.manifest import read_manifest

_RECIPE = "MULTITALK_RECIPE"
_OVERRIDES = "MULTITALK_OVERRIDES"
#: Default model.
MODEL = "multitalk"
#: Default recipe, for cards with 24 GB and more.
RECIPE = "card-24gb"
#: Quantisation that `RECIPE` uses: it reads the published file of this kind.
QUANT = "int8-quanto"


def boot(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the overrides of a worker: its defaults, then those of its environment, then `arguments`.

    Later ones win. Raises ConfigError. Only here does code read the environment itself; everywhere else a config does,
    but a config cannot contain overrides.
    """
    overrides = [*environment_overrides(environment), *arguments]
    named = {override.lstrip("+~").partition("=")[0] for override in overrides}
    chosen = [override.partition("=")[2].strip("'\"") for override in overrides if override.startswith("model=")]
    recipe = environment_recipe(environment) or _default_recipe(chosen[-1] if chosen else MODEL)
    return [*_defaults(named, environment, recipe=recipe), *overrides]


def environment_overrides(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the overrides in MULTITALK_OVERRIDES. Raises ConfigError if it cannot be split into overrides."""
    return _split(environment.get(_OVERRIDES, ""))


def environment_recipe(environment: Mapping[str, str] = os.environ) -> str:
    """Return the recipe that MULTITALK_RECIPE names, or ""."""
    return environment.get(_RECIPE, "").strip()


def _default_recipe(model: str) -> str:
    """Return the default recipe if `model` is published in the form that the recipe reads, else "".

    The embedded model and models of plugins do not have those files. A recipe that the user names is always used.
    """
    preset = read_manifest().preset_of(model, QUANT)
    return RECIPE if preset is not None and f"quant={QUANT}" in preset.use.split() else ""


def _defaults(named: set[str], environment: Mapping[str, str], *, recipe: str) -> Iterator[str]:
    if "model" not in named:
        # Not the tiny model: a user who pays for a GPU gets it only on request.
        yield f"model={MODEL}"
    if "recipe" not in named and recipe:
        yield f"recipe={recipe}"
    if "access.schemes" not in named:
        # No paths: jobs are untrusted.
        yield "access.schemes=[data,http,https,s3]"
    if "resume.folder" not in named:
        # A job that is sent again, after the worker died, continues with its next window.
        yield "resume.folder=volume"
    if "sink" not in named:
        if environment.get("S3_BUCKET") or environment.get("BUCKET_ENDPOINT_URL"):
            yield "sink=s3"
        else:
            yield "sink=base64"
            if "sink.limit" not in named:
                yield "sink.limit=${entrypoint.answer_bytes}"


def _split(text: str) -> list[str]:
    try:
        overrides = shlex.split(text)
    except ValueError as error:
        # A single apostrophe, as in the name of a folder, is not a quote.
        overrides = text.split()
        quoted = any(override.partition("=")[2][:1] in ("'", '"') for override in overrides if "=" in override[:-1])
        if quoted or any("=" not in override and not override.startswith("~") for override in overrides):
            raise ConfigError(
                f"it cannot be split into overrides: {error}",
                field=_OVERRIDES,
                hint=f"use quotes as in a shell, such as {_quoted(overrides)}",
            ) from error
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            hint = "write group=name or key=value, separated by spaces; quote values with spaces as in a shell"
            raise ConfigError(f"{override!r} is not an override", field=_OVERRIDES, hint=hint)
    return overrides


def _quoted(parts: Sequence[str]) -> str:
    """Return a correctly quoted line for parts that were split at spaces: a part without a key continues the last."""
    joined: list[str] = []
    for part in parts:
        if joined and "=" not in part and not part.startswith("~"):
            joined[-1] += f" {part}"
        else:
            joined.append(part)
    return shlex.join(joined)

"""What a worker boots with before anybody says anything, and what its environment says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence

from engine.errors import ConfigError
from engine.hub.manifest import read_manifest

_RECIPE = "MULTITALK_RECIPE"
_OVERRIDES = "MULTITALK_OVERRIDES"
#: Without a choice of model and recipe.
MODEL = "multitalk"
#: For cards of 24 GB and more.
RECIPE = "card-24gb"
#: Of `RECIPE`: it reads the published file of this kind.
QUANT = "int8-quanto"


def boot(asked: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the overrides of a worker that is asked for with `asked`: its defaults, its environment's, and those.

    What comes later wins. The one place where code reads the environment in a config's stead: an override cannot stand
    in a config. Raises ConfigError.
    """
    told = [*environment_overrides(environment), *asked]
    named = {override.lstrip("+~").partition("=")[0] for override in told}
    chosen = [override.partition("=")[2].strip("'\"") for override in told if override.startswith("model=")]
    recipe = environment_recipe(environment) or _fitting(chosen[-1] if chosen else MODEL)
    return [*_defaults(named, environment, recipe=recipe), *told]


def environment_overrides(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the overrides that MULTITALK_OVERRIDES has. Raises ConfigError if it cannot be split into words."""
    return _split(environment.get(_OVERRIDES, ""))


def environment_recipe(environment: Mapping[str, str] = os.environ) -> str:
    """Return the recipe that MULTITALK_RECIPE names; "": none."""
    return environment.get(_RECIPE, "").strip()


def _fitting(model: str) -> str:
    """Return the default recipe where `model` is published as that recipe reads it, else "".

    So the embedded model, or one of a plugin's, is not asked for files that it does not have; whoever names a recipe
    gets it, whatever the model.
    """
    preset = read_manifest().preset_of(model, QUANT)
    return RECIPE if preset is not None and f"quant={QUANT}" in preset.use.split() else ""


def _defaults(named: set[str], environment: Mapping[str, str], *, recipe: str) -> Iterator[str]:
    if "model" not in named:
        # Whoever pays for a GPU gets the tiny model by asking for it alone.
        yield f"model={MODEL}"
    if "recipe" not in named and recipe:
        yield f"recipe={recipe}"
    if "access.schemes" not in named:
        # No paths: a job comes from anywhere.
        yield "access.schemes=[data,http,https,s3]"
    if "sink" not in named:
        if environment.get("S3_BUCKET") or environment.get("BUCKET_ENDPOINT_URL"):
            yield "sink=s3"
        else:
            yield "sink=base64"
            if "sink.limit" not in named:
                yield "sink.limit=${entrypoint.answer_bytes}"


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        # An apostrophe alone, as in a folder's name: it quotes nothing.
        words = text.split()
        quoted = any(word.partition("=")[2][:1] in ("'", '"') for word in words if "=" in word[:-1])
        if quoted or any("=" not in word and not word.startswith("~") for word in words):
            raise ConfigError(
                f"it cannot be split into words: {error}",
                field=_OVERRIDES,
                hint=f"quote as in a shell, such as {_quoted(words)}",
            ) from error
    for word in words:
        if "=" not in word and not word.startswith("~"):
            hint = "write group=name or key=value, separated by blanks; quote blanks as in a shell"
            raise ConfigError(f"{word!r} is no override", field=_OVERRIDES, hint=hint)
    return words


def _quoted(words: Sequence[str]) -> str:
    """Return words that were split at their blanks as they would be written: those without a key belong to the last."""
    joined: list[str] = []
    for word in words:
        if joined and "=" not in word and not word.startswith("~"):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return shlex.join(joined)

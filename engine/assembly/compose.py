"""Overrides -> a typed config, with the rules for what a request may override."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.assembly.composition import compositions
from engine.assembly.typed_overrides import parse, readable, shell_line
from engine.config import FIXED, OVERRIDABLE, Config
from engine.config.bounds import check_numbers, check_word
from engine.config.ranges import BUNDLE
from engine.config.shape import check_shape
from engine.errors import ConfigError, EngineError, RequestError, UnknownComponent
from engine.plugin import manager
from engine.text.similar import similar


def compose(overrides: Sequence[str]) -> Config:
    """Compose the presets in conf/ with `overrides` (Hydra's grammar) into typed dataclasses.

    Raises ConfigError, in one line, for an unknown group, name or key and for an invalid value.
    """
    words = readable(overrides)
    try:
        with translated(words):
            return typed(compositions().compose(words))
    except ConfigError as error:
        raise _with_line(_with_place(error, words), overrides) from error


def compose_request(boot: Sequence[str], overrides: Sequence[str]) -> Config:
    """Compose an engine's boot overrides with those of one request.

    Raises RequestError for an override that does more than set an allowed key to a bool, a number or a word without
    quotes, or that would change what is fixed at boot.
    """
    return _compose_request(boot, overrides, compose(boot)) if overrides else compose(boot)


def _compose_request(boot: Sequence[str], overrides: Sequence[str], booted: Config) -> Config:
    overrides = readable(overrides)
    _check(overrides)
    try:
        config = compose([*boot, *overrides])
    except ConfigError as error:
        code = "" if error.code == ConfigError.CODE else error.code
        raise RequestError(error.what, field=f"overrides ({error.field})", hint=error.hint, code=code) from error
    _check_fixed(config, booted, overrides)
    return config


def _check_fixed(config: Config, boot: Config, overrides: Sequence[str]) -> None:
    for key in FIXED:
        if getattr(config, key) != getattr(boot, key):
            raise RequestError(
                f"{' '.join(overrides)} would change {key!r}, which is fixed when the engine starts",
                field="overrides",
                hint=f"start an engine with another {key}",
            )


class Composer:
    """Composes the configs of requests to one engine. No two requests share a config."""

    def __init__(self, boot: Sequence[str]) -> None:
        """Raise ConfigError as `compose` does."""
        self._boot = tuple(boot)
        self.config = compose(self._boot)

    def request(self, overrides: Sequence[str]) -> Config:
        """Return what `compose_request(boot, overrides)` returns. Raises RequestError as it does."""
        return _compose_request(self._boot, overrides, self.config) if overrides else deepcopy(self.config)


def typed(composed: DictConfig) -> Config:
    """Turn a composed config into dataclasses. Raises ConfigError if it does not match the schema."""
    with translated():
        _check_resolution(composed)
        # Before anything is resolved: steps and scales interpolate through the model's bundle of this name.
        check_word(OmegaConf.select(composed, "sampler.bundle"), "sampler.bundle", BUNDLE["one_of"])
        _check_bundle(composed)
        config = OmegaConf.to_object(composed)
    if not isinstance(config, Config):
        raise ConfigError(f"the composed config is a {type(config).__name__}, not the engine's schema")
    check_shape(config)
    _check_extra(config, "")
    check_numbers(config)
    return config


def _check_bundle(composed: DictConfig) -> None:
    """Raise ConfigError if the model has no bundle of the sampler's name."""
    bundle = OmegaConf.select(composed, "sampler.bundle")
    if OmegaConf.select(composed, f"model.{bundle}") is None:
        name, has = (
            OmegaConf.select(composed, "model.name"),
            [word for word in BUNDLE["one_of"] if OmegaConf.select(composed, f"model.{word}") is not None],
        )
        raise ConfigError(
            f"model={name} has no {bundle!r} bundle",
            field="sampler",
            hint=f"choose {' or '.join(f'sampler={word}' for word in has)}",
        )


@contextmanager
def translated(words: Sequence[str] = ()) -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into ConfigError, one line each.

    `words` are the overrides that were composed: their choices determine which keys can be suggested.
    """
    try:
        yield
    except EngineError:
        raise
    except MissingConfigException as error:
        raise _missing(error) from error
    except OverrideParseException as error:
        word = str(error.override)
        raise ConfigError(
            f"cannot read {word!r}",
            field="override",
            hint=f"write group=name or key=value{f', such as {shell_line(word)}' if '=' in word else ''}",
        ) from error
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise _misfit(error, words) from error
    except (AssertionError, AttributeError) as error:
        # OmegaConf's, for a value inside of an optional part that is null.
        if (problem := _within_null(words)) is None:
            raise
        raise problem from error
    except (HydraException, ValueError, OverflowError) as error:
        # Hydra raises plain Python errors for some overrides, such as sampler=null, and for numbers beyond float.
        raise ConfigError(
            str(error).partition("\n")[0], field="override", hint="write group=name or key=value"
        ) from error


def _with_line(error: ConfigError, words: Sequence[str]) -> ConfigError:
    """Return the error with a corrected line as hint, if Hydra took a text for a list or an object."""
    if "string" not in error.what:
        return error
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+~") == error.field and value[:1] in ("[", "{"):
            return ConfigError(error.what, field=error.field, hint=f"for a text write {shell_line(word)}")
    return error


def _with_place(error: ConfigError, words: Sequence[str]) -> ConfigError:
    """Return the error with the full key, if OmegaConf named only the last part of a key within a list."""
    for override in (parse(word) for word in words if error.field and "." not in error.field):
        value = override.value() if override is not None else None
        entries = value if isinstance(value, list) else ()
        places = [n for n, entry in enumerate(entries) if isinstance(entry, dict) and error.field in map(str, entry)]
        if override is not None and places:
            place = f"[{places[0]}].{error.field}" if len(places) == 1 else ""
            key = f"{override.key_or_group}{place}"
            return ConfigError(error.what, field=key, hint=error.hint, code=error.code)
    return error


def _missing(error: MissingConfigException) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group:
        names = [option for option in error.options or () if option != "schema"]
        return UnknownComponent(group, name, names, broken=manager.installed().broken, near=similar(name, names))
    return ConfigError(str(error).partition("\n")[0], field=group)


def _misfit(error: Exception, words: Sequence[str]) -> ConfigError:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first, *rest = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    key = getattr(cause, "full_key", None) or next((r.partition(":")[2].strip() for r in rest if "full_key" in r), "")
    text = str(error).partition("\n")[0]
    if text.startswith("Ambiguous value"):
        wrong = text.partition("'")[2].rpartition("'")[0]
        return ConfigError(
            f"{wrong!r} has several values",
            field=wrong.partition("=")[0],
            hint=f"add -m to run each, or write {shell_line(wrong)}",
        )
    if "Could not override" in text or "not in" in first:
        wrong = text.partition("'")[2].partition("'")[0] or str(key)
        near = _near(wrong.partition("=")[0], keys_of(words))
        hint = f"did you mean {' or '.join(near)}?" if near else "multitalk --help lists the groups and keys"
        return ConfigError(f"there is no {wrong!r} in the config", field=wrong.partition("=")[0], hint=hint)
    hint = next((hint for kind, hint in _KINDS.items() if kind in first), "multitalk plugins lists the choices")
    return ConfigError(first, field=str(key), hint=hint)


def _within_null(words: Sequence[str]) -> ConfigError | None:
    """Return the error for the first of `words` that sets a part, or a value of a part, that is null; None for none."""
    composed = compositions().compose([word for word in words if "." not in word.partition("=")[0]])
    for key in (word.partition("=")[0].lstrip("+") for word in words if "." in word.partition("=")[0]):
        parts = key.split(".")
        for path in (".".join(parts[:depth]) for depth in range(1, len(parts) + 1)):
            # Not a missing key: that has another error.
            if OmegaConf.select(composed, path, default="") is None:
                hint = "choose a preset that has it, or write a preset of your own"
                return ConfigError(f"{path!r} is null with these presets, and cannot be set", field=key, hint=hint)
    return None


#: Part of OmegaConf's message -> hint.
_KINDS = {
    "to Integer": "give a whole number",
    "to Float": "give a number",
    "Union[int, str]": "give a whole number, or auto",
    "Boolean": "give true or false",
    "not a valid bool": "give true or false",
    "not a list": "give a list, [a, b]",
    "Missing mandatory": "set a value",
}


def _near(key: str, keys: Sequence[str]) -> list[str]:
    """Return the keys most similar to `key`: siblings of it, else those of other choices of its group, else any."""
    above, _, last = key.lstrip("+~").rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == above}
    if near := [beside[name] for name in similar(last, beside, most=3)]:
        return near
    if near := _elsewhere(above, last):
        return near
    ends: dict[str, list[str]] = {}
    # Those of the model are the sources of the others.
    for name in sorted(keys, key=lambda name: name.startswith("model.")):
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    near = [name for end in similar(last, ends, most=2, cutoff=0.75) for name in ends[end]]
    return near[:3] or similar(key, keys, most=1, cutoff=0.8)


def _elsewhere(group: str, last: str) -> list[str]:
    """Return keys like `last` that other components of a group have, each with those components."""
    own: dict[str, list[str]] = {}
    for register in manager.installed().registers:
        if register.group == group:
            for name in register.names():
                for field in fields(register.config(name)):
                    own.setdefault(field.name, []).append(name)
    near = similar(last, own)
    return [f"{group}.{name} (with {group}={' or '.join(own[name][:3])})" for name in near]


def keys_of(words: Sequence[str]) -> list[str]:
    """Return all keys of the config that the choices among `words` (group=name) compose."""
    keys: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in map(str, node):
            keys.append(f"{prefix}{key}")
            if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
                child = node[key]
                if isinstance(child, DictConfig):
                    walk(child, f"{prefix}{key}.")

    choices = [word for word in words if "." not in word.partition("=")[0]]
    try:
        composed = compositions().compose(choices)
    except (HydraException, OmegaConfBaseException):
        composed = compositions().compose([])
    walk(composed, "")
    return keys


def _check_resolution(composed: DictConfig) -> None:
    # Before anything is resolved: schedules and caches interpolate through the table by this name.
    name, table = str(composed.resolution), composed.model.resolutions
    if name not in table:
        raise ConfigError(
            f"the model {composed.model.name!r} has no resolution {name!r}",
            field="resolution",
            hint=f"it has: {', '.join(map(str, table))}",
            code="unknown_choice",
        )


def _check_extra(node: object, prefix: str) -> None:
    # An override with a leading "+" adds keys that the schema does not have; OmegaConf sets them as attributes.
    if not is_dataclass(node):
        return
    declared = {field.name for field in fields(node)}
    for key, value in vars(node).items():
        if key not in declared:
            raise ConfigError(
                f"there is no {prefix + key!r} in the config", field=prefix + key, hint="remove the leading '+'"
            )
        _check_extra(value, f"{prefix}{key}.")


def _check(overrides: Sequence[str]) -> list[Override]:
    allowed = ", ".join(OVERRIDABLE)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        # Only the override that caused the error.
        wrong = getattr(error, "override", None) or overrides[-1]
        raise _refused(f"cannot read {wrong!r}", "write key=value") from error
    for override in parsed:
        line = override.input_line or ""
        key = override.key_or_group
        if override.type is not OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
            raise _refused(f"{line!r} is not a plain change", "write key=value")
        if key.partition(".")[0].partition("/")[0] not in OVERRIDABLE or key.endswith(".name") or "/" in key:
            raise _refused(f"{key!r} cannot be overridden by a request", f"allowed: {allowed}")
        if not _plain(override):
            raise _refused(
                f"{line!r} has a value that a request may not set",
                "give a number, true, false or a word without quotes",
            )
    return parsed


def _refused(what: str, hint: str) -> RequestError:
    return RequestError(what, field="overrides", hint=hint, code="override_refused")


def _plain(override: Override) -> bool:
    value = override.value()
    if isinstance(value, bool | int | float):
        return True
    return isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum()

"""`python -m engine.cli.config_page > docs/config.md`: the page of all keys, from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from engine.assembly.compose import compose
from engine.cli.catalog import OURS, Choice, choices
from engine.config import FIXED, OVERRIDABLE, Config
from engine.config_keys.meanings import about
from engine.config_keys.reference import Key, choices_of, group_about, keys

_INTRO = """\
# The keys of the config

`python -m engine.cli.config_page > docs/config.md` generates this page from the schema (`engine/config`) and the
configs of the bundled components; a test compares them. `multitalk config` prints your composed config with the
origin of each value. `multitalk config KEY` prints this page's entry for one key, also for installed plugins
([cli.md](cli.md#the-composed-config)).

`group=name` selects a preset or a component, `key=value` sets one value. Later entries override earlier ones: the
schema's defaults, the presets of the groups, the recipe and the experiment, the command line. In a key, NAME is any
name in a table and `[]` any entry of a list.

A default of `${...}` is the value of another key. `$NAME` is an environment variable; the value after "else" applies
if it is not set. Every number must be finite; without a listed range its magnitude is at most 2^53. A value out of
range, of a wrong type, or not among the listed words is rejected with one line that names the key.
"""
_FIXED = "Fixed when the engine starts: a job cannot change it."
_REQUEST = "A job may change it with its `overrides`."


def document() -> str:
    """Return the page, of the bundled components alone."""
    installed = [choice for choice in choices() if choice.package == OURS]
    return "\n\n".join(part.strip("\n") for part in _page(installed)) + "\n"


def _page(installed: Sequence[Choice]) -> Iterator[str]:
    yield _INTRO
    config = compose([])
    singles = [key for key in keys() if "." not in key.name and not key.group]
    yield "## Single keys"
    yield _table(singles)
    for field in fields(Config):
        group = next(key for key in keys() if key.name == field.name)
        if not group.group:
            continue
        named = {choice.name: choice for choice in installed if choice.group == field.name}
        yield f"## `{field.name}`"
        yield " ".join(filter(None, (group_about(field.name), _who(field.name))))
        if named:
            first = getattr(getattr(config, field.name), "name", "")
            first = "standard" if field.name == "sampler" else first
            yield _choices(field.name, list(named.values()), first)
        inside = [key for key in keys() if key.name.startswith(f"{field.name}.") and not key.group]
        yield _table([key for key in inside if not key.choice])
        for name, kind in choices_of(field.name).items():
            own = [key for key in inside if key.choice == f"{field.name}={name}"]
            if own and name in named:
                yield f"### `{field.name}={name}`"
                yield about(kind)
                yield _table(own)


def _who(group: str) -> str:
    if group in FIXED:
        return _FIXED
    return _REQUEST if group in OVERRIDABLE else ""


def _choices(group: str, named: Sequence[Choice], first: str) -> str:
    rows = [f"| `{group}=` | |", "|---|---|"]
    for choice in named:
        by_default = " (default)" if choice.name == first else ""
        rows.append(f"| `{choice.name}`{by_default} | {_cell(choice.about)} |")
    return "\n".join(rows)


def _table(rows: Sequence[Key]) -> str:
    lines = ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for key in rows:
        cells = (f"`{key.name}`", key.type, key.default_text, key.allowed, key.meaning)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    # A placeholder such as <job> would be read as HTML.
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(document(), end="")

"""docs/plugins.md: its tables are written from the code, so that what it says of the plugin API is so.

MULTITALK_WRITE_DOCS=1 pytest tests/docs/test_plugins_page.py writes them anew.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import components, data, family
from engine.data import dialogue, voices
from engine.plugin import spec
from engine.plugin.api import API, EVERY
from engine.plugin.manager import Registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugins.md"
HOOKS = [name for name, value in vars(spec).items() if hasattr(value, "multitalk_engine_spec")]
#: All protocols of `engine.components` and `engine.family`, in the order in which they stand there.
PROTOCOLS: dict[str, type] = {
    name: value
    for module in (components, dialogue, voices, family)
    for name, value in vars(module).items()
    if inspect.isclass(value) and getattr(value, "_is_protocol", False) and value.__module__ == module.__name__
}


def kinds() -> dict[str, str]:
    """Return protocol -> hook of each kind of component, as the hooks' annotations say."""
    found = {}
    for hook in HOOKS:
        annotation = str(inspect.signature(getattr(spec, hook)).parameters.get("register", ""))
        if match := re.search(r"Register\[(\w+)\]", annotation):
            found[match[1]] = hook
    return found


def group(hook: str) -> str:
    """Return the config group whose components a hook registers."""
    registry = Registry()
    filled: dict[str, str] = {}
    module = type("Plugin", (), {})()
    setattr(module, hook, spec.hookimpl(lambda register: filled.update(group=register.group), specname=hook))
    registry.plugins.register(module)
    registry.register()
    return filled["group"]


def sentences(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split())
    return text.replace("|", "\\|")


def call(name: str, function: Callable[..., Any]) -> str:
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    return f"`{name}({', '.join(parameters)})`"


def methods(protocol: type) -> Iterator[tuple[str, str]]:
    """Yield each method and each attribute of a protocol's own, with what it does."""
    tree = ast.parse(inspect.getsource(protocol))
    lines = inspect.getsource(protocol).splitlines()
    for node in typing.cast("ast.ClassDef", tree.body[0]).body:
        if isinstance(node, ast.AnnAssign):
            above = lines[node.lineno - 2].strip()
            yield f"`{ast.unparse(node.target)}`", above.removeprefix("#: ") if above.startswith("#: ") else ""
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            yield f"`{name}`", sentences(value)
        elif inspect.isfunction(value) and not name.startswith("_"):
            yield call(name, value), sentences(value)


def smallest(hook: str) -> str:
    """Return the shortest bundled plugin that implements a hook."""
    files = [path for path in (ROOT / "plugins").rglob("*.py") if f"def {hook}(" in path.read_text("utf-8")]
    path = min(files, key=lambda path: (len(path.read_text("utf-8")), path.name))
    return f"`{path.relative_to(ROOT)}`"


def table(head: str, rows: Iterator[tuple[str, ...]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def kinds_table() -> str:
    rows = (
        (f"`{group(hook)}`", f"`{name}`", sentences(PROTOCOLS[name]), f"`{hook}`", smallest(hook))
        for name, hook in kinds().items()
    )
    return table("config group | protocol | what it is | hook | smallest bundled one", rows)


def optional(protocol: type) -> str:
    """Return the kind of component that a protocol adds something to, "" where it is no such protocol."""
    return next((base.__name__ for base in protocol.__bases__ if base.__name__ in kinds()), "")


def methods_table() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        order = sorted(PROTOCOLS, key=lambda name: list(PROTOCOLS).index(optional(PROTOCOLS[name]) or name))
        for name in order:
            protocol = PROTOCOLS[name]
            above = f"(optional) {sentences(protocol)}" if optional(protocol) else sentences(protocol)
            yield f"**`{name}`**", "", above
            yield from (("", method, about) for method, about in methods(protocol))

    return table("protocol | method | what it does", rows())


def hooks_table() -> str:
    return table(
        "hook | what it is for", ((call(hook, getattr(spec, hook)), sentences(getattr(spec, hook))) for hook in HOOKS)
    )


def imports_table() -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for row in API:
            kind = "every" if EVERY in row.kinds else ", ".join(row.kinds)
            yield kind, f"`{row.module}`", " ".join(f"`{name}`" for name in row.names), row.why

    return table("kind of plugin | module | names | what for", rows())


def values() -> list[type]:
    """Return the dataclasses that protocols and hooks take or return, in the order in which they are met."""
    functions = [value for one in PROTOCOLS.values() for value in vars(one).values() if inspect.isfunction(value)]
    functions += [getattr(spec, hook) for hook in HOOKS]
    words = [word for function in functions for word in re.findall(r"\w+", str(inspect.signature(function)))]
    known = [getattr(components, word, None) or getattr(data, word, None) for word in words]
    return list(dict.fromkeys(one for one in known if isinstance(one, type) and dataclasses.is_dataclass(one)))


def values_table() -> str:
    def fields(one: type) -> str:
        return ", ".join(f"`{field.name}: {field.type}`" for field in dataclasses.fields(one)).replace("|", "\\|")

    return table(
        "dataclass | what it is | fields",
        ((f"`{one.__name__}`", sentences(one), fields(one)) for one in values()),
    )


BLOCKS = {
    "kinds": kinds_table,
    "methods": methods_table,
    "values": values_table,
    "hooks": hooks_table,
    "imports": imports_table,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_page_shows_what_the_code_says(name: str) -> None:
    text, made = PAGE.read_text("utf-8"), BLOCKS[name]()
    before, mark, rest = text.partition(f"<!-- {name} -->\n")
    shown, end, after = rest.partition(f"\n<!-- /{name} -->")
    assert mark
    assert end
    if os.environ.get("MULTITALK_WRITE_DOCS"):
        PAGE.write_text(f"{before}{mark}{made}{end}{after}", "utf-8")
    else:
        assert shown == made, "MULTITALK_WRITE_DOCS=1 pytest tests/docs/test_plugins_page.py writes it anew"


def test_every_register_hook_has_a_kind_and_every_kind_a_protocol() -> None:
    registered = [hook for hook in HOOKS if hook.startswith("register_") and hook != "register_presets"]
    assert list(kinds().values()) == registered
    assert set(kinds()) <= set(PROTOCOLS)
    assert sorted(map(group, registered)) == sorted(register.group for register in Registry().registers)


def test_every_protocol_hook_and_method_is_explained() -> None:
    bare = [name for name, protocol in PROTOCOLS.items() if not protocol.__doc__]
    bare += [f"{name}.{method}" for name, one in PROTOCOLS.items() for method, about in methods(one) if not about]
    bare += [hook for hook in HOOKS if not sentences(getattr(spec, hook))]
    assert not bare


def test_a_sink_for_a_job_is_documented_with_the_arguments_that_it_is_given() -> None:
    # Said with two arguments once, while the engine passes three: a sink written from the page failed.
    assert "`for_job(job, store, private_hosts)`" in methods_table()

"""Imports run one way: the engine knows no plugin, a plugin knows the seams alone, nothing runs in a circle."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])

#: From the top down; each may import what stands after it.
ORDER = ("cli", "service", "pipeline", "registry", "hookspecs", "register", "config", "errors")
#: Room -> all it may import of ours.
ROOMS = {
    "engine.cancel": {"engine.errors"},
    "engine.access": {"engine.cancel"},
    "engine.adapters": set[str](),
    "engine.budget": set[str](),
    "engine.data": {"engine.access", "engine.adapters", "engine.budget", "engine.estimates", "engine.voices"},
    "engine.voices": set[str](),
    "engine.wire": {"engine.cancel"},
    "engine.estimates": set[str](),
    "engine.errors": {"engine.plain"},
    "engine.plain": set[str](),
    "engine.config": {"engine.errors", "engine.model_config", "engine.ranges"},
    "engine.model_config": {"engine.ranges"},
    "engine.ranges": set[str](),
    "engine.network": {"engine.cancel", "engine.errors", "engine.wire"},
    "engine.redact": set(),
    "engine.download": {"engine.data", "engine.errors", "engine.network", "engine.wire"},
    "engine.patience": {"engine.buckets", "engine.cancel"},
    "engine.components": {"engine.cancel", "engine.data", "engine.tensors"},
    "engine.h264": {"engine.cancel", "engine.containers", "engine.errors"},
    "engine.containers": set[str](),
    "engine.cuts": {"engine.data", "engine.errors"},
    "engine.tensors": {"engine.errors", "engine.sniff"},
    "engine.buckets": {"engine.data", "engine.errors", "engine.network", "engine.pinned"},
    "engine.pinned": {"engine.errors", "engine.network"},
    "engine.bounded": {"engine.errors"},
    "engine.base64_text": set[str](),
    "engine.scratch": {"engine.errors"},
    "engine.speakers": {"engine.bounded", "engine.cuts", "engine.data", "engine.errors"},
    "engine.jobs": {
        *("engine.base64_text", "engine.bounded", "engine.budget", "engine.data", "engine.errors", "engine.jobs"),
        "engine.speakers",
    },
    "engine.endpoint": {"engine.endpoint", "engine.errors", "engine.scratch"},
    "engine.host_memory": set[str](),
    "engine.shelf": {"engine.data", "engine.errors", "engine.whole"},
    "engine.sums": set[str](),
    "engine.whole": set[str](),
    "engine.room": {"engine.host_memory"},
    "engine.peaks": {"engine.data"},
    "engine.fit": {"engine.data", "engine.errors", "engine.estimates", "engine.fit", "engine.room"},
    "engine.rehearsal": {
        *("engine.bench.random_folder", "engine.compose", "engine.config", "engine.data", "engine.errors"),
        *("engine.estimates", "engine.fit", "engine.multitalk", "engine.pipeline", "engine.registry"),
        *("engine.fitting", "engine.rehearsal", "engine.scratch", "engine.settings", "engine.tensors"),
    },
    "engine.client": {"engine.client", "engine.errors", "engine.whole"},
    "engine.comparison": {"engine.comparison", "engine.errors", "engine.plain", "engine.whole"},
    "engine.libraries": {"engine.errors"},
    "engine.models": {"engine.errors", "engine.models", "engine.names", "engine.plain", "engine.whole"},
    "engine.names": set[str](),
    "engine.sniff": set[str](),
    "engine.worker": {
        *(
            "engine.components",
            "engine.config",
            "engine.data",
            "engine.errors",
            "engine.host_memory",
            "engine.jobs",
            "engine.models",
        ),
        "engine.bounded",
        "engine.redact",
        "engine.worker",
    },
    "engine.batch": {
        *("engine.batch", "engine.commands.hush", "engine.components", "engine.data", "engine.errors", "engine.jobs"),
        *("engine.bounded", "engine.names", "engine.whole", "engine.worker"),
    },
    "engine.keys": {
        *("engine.compose", "engine.config", "engine.keys", "engine.redact", "engine.registry", "engine.words"),
    },
    "engine.register": {"engine.config", "engine.errors"},
    "engine.hookspecs": {"engine.components", "engine.data", "engine.register"},
    "engine.folders": {"engine.errors", "engine.names"},
    "engine.multitalk": {
        "engine.components",
        "engine.data",
        "engine.errors",
        "engine.folders",
        "engine.multitalk",
        "engine.names",
        "engine.room",
        "engine.sniff",
        "engine.tensors",
    },
    "engine.stages": {
        *("engine.cancel", "engine.components", "engine.containers", "engine.cuts", "engine.data", "engine.errors"),
        *("engine.base64_text", "engine.h264", "engine.multitalk", "engine.stages", "engine.whole"),
    },
    "engine.bar": {"engine.components", "engine.data"},
    "plugins": {
        "engine",
        "engine.adapters",
        "engine.bar",
        "engine.base64_text",
        "engine.batch",
        "engine.bounds",
        "engine.buckets",
        "engine.cancel",
        "engine.components",
        "engine.config",
        "engine.data",
        "engine.download",
        "engine.endpoint",
        "engine.errors",
        "engine.estimates",
        "engine.folders",
        "engine.h264",
        "engine.jobs",
        "engine.libraries",
        "engine.models",
        "engine.multitalk.layout",
        "engine.network",
        "engine.patience",
        "engine.plain",
        "engine.redact",
        "engine.register",
        "engine.scratch",
        "engine.speakers",
        "engine.shelf",
        "engine.sums",
        "engine.tensors",
        "engine.whole",
        "engine.worker",
    },
}
#: What a plugin may import when it is loaded, beside Python's own library and ours: what loading it costs anyway.
LIGHT = {"engine", "hydra", "omegaconf"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}
CORE = {name: path for name, path in MODULES.items() if not name.startswith("plugins")}


def imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in MODULES else str(node.module)


def ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name.partition(".")[0] in ("engine", "plugins")}


def at_load(path: Path) -> Iterator[str]:
    """Yield the top packages that a file imports as soon as it is loaded."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def within(name: str, room: str) -> bool:
    return name == room or (name.startswith(f"{room}.") and room != "engine")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_it_may(room: str) -> None:
    inside = [name for name in MODULES if within(name, room)]
    assert inside, f"{room} is gone: mend the table"
    wrong = {
        (name, wanted)
        for name in inside
        for wanted in ours(MODULES[name])
        if not any(within(wanted, allowed) for allowed in ROOMS[room])
    }
    assert not wrong


def test_engine_never_imports_plugins() -> None:
    wrong = {name for name, path in CORE.items() if any(within(wanted, "plugins") for wanted in ours(path))}
    assert not wrong


def test_only_its_command_imports_the_rehearsal() -> None:
    users = {name for name, path in MODULES.items() if any(within(one, "engine.rehearsal") for one in ours(path))}
    assert {name for name in users if not within(name, "engine.rehearsal")} == {"engine.commands.rehearse"}


def test_core_runs_from_the_command_line_down_to_the_errors() -> None:
    for height, room in enumerate(ORDER):
        above = {f"engine.{name}" for name in ORDER[:height]}
        assert not ours(MODULES[f"engine.{room}"]) & above, room


def test_no_module_of_the_engine_comes_in_through_its_own_door() -> None:
    # Only the benches do: they use the engine as anybody would.
    wrong = {name for name, path in CORE.items() if "engine" in ours(path) and not within(name, "engine.bench")}
    assert not wrong


def test_there_are_no_circles() -> None:
    order = graphlib.TopologicalSorter({name: ours(path) - {name} for name, path in MODULES.items()})
    order.prepare()


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "plugins")])
def test_plugin_keeps_heavy_imports_inside_functions(name: str) -> None:
    heavy = {top for top in at_load(MODULES[name]) if top not in LIGHT and top not in sys.stdlib_module_names}
    assert not heavy


def test_door_is_lazy_and_complete() -> None:
    assert python("import sys, engine; print('torch' in sys.modules, 'hydra' in sys.modules)").startswith("False")
    for name in engine.__all__:
        assert getattr(engine, name) is not None


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["generate", "--help"]])
def test_looking_around_does_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from engine.cli import main; main({words!r}); print('torch' in sys.modules)"
    assert python(code).splitlines()[-1] == "False"


def test_dry_run_does_not_import_torch() -> None:
    examples = ROOT / "engine" / "examples"
    words = ["generate", "--dry-run", "--image", str(examples / "one.png"), "--audio", str(examples / "one.flac")]
    words += ["--prompt", "a person talks"]
    code = f"import sys; from engine.cli import main; status = main({words!r}); print(status, 'torch' in sys.modules)"
    assert python(code).splitlines()[-1] == "0 False"


def test_setup_lists_every_package_folder() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    listed = setup["options"]["packages"].split()
    folders = {module(path / "__init__.py") for path in {file.parent for file in FILES}}
    assert sorted(listed) == sorted({*folders, "engine.conf"})


def test_every_folder_with_code_is_a_package() -> None:
    assert {file.parent for file in FILES} == {file.parent for file in FILES if file.name == "__init__.py"}


def test_modules_open_with_one_sentence_and_stay_one_room() -> None:
    for path in FILES:
        text = path.read_text("utf-8")
        assert ast.get_docstring(ast.parse(text)), path
        assert text.count("\n") <= (600 if "multitalk" in path.parts else 400), path

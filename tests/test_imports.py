"""Imports run one way: the engine knows no plugin, a plugin knows the seams alone, nothing runs in a circle."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "engine").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])

#: Package, or module of the root: which of ours it imports. This is the one list; docs/architecture.md is written from
#: it. Lowest first: a row may name only what stands above it, and names no more than is imported.
TABLE = """
data:
errors:
imports:
redaction:
text:
cancel: data errors
components: data
family: components data
config: errors
files: data errors
machine: data errors text
network: data errors imports
client: errors files
hub: errors files text
loading: components data errors imports machine network text
media: cancel components data errors
people: data errors media
net: cancel data errors
planning: components data errors machine
plugin: components config data errors family
runtime: components config data errors machine network
serving: components config data errors files hub machine media redaction runtime text
stages: cancel components data errors family files loading media network text
evaluation: data media
assembly: cancel components config data errors evaluation family files hub loading machine media network net planning
    plugin runtime stages text
plugins: cancel components config data errors family files hub imports loading machine media network net people planning
    plugin redaction runtime serving stages text
config_keys: assembly config plugin redaction
pipeline: assembly components config data files plugin runtime stages
bench: assembly client components data errors evaluation files loading machine media network pipeline planning
    plugin runtime stages
rehearsal: assembly components config data errors files loading machine network pipeline planning plugin text
service: assembly cancel components config data errors files imports loading pipeline plugin runtime stages
talker: assembly components data errors files plugin runtime service stages text
doctor: assembly components data errors machine network planning plugin service serving text
sweeps: assembly config data errors evaluation files media plugin redaction runtime service stages text
cli: assembly bench config config_keys data doctor errors files hub imports media pipeline planning plugin redaction
    rehearsal runtime service serving stages sweeps text
"""
PACKAGES = {
    name: set(wanted.split())
    for name, _, wanted in (row.partition(":") for row in TABLE.replace("\n    ", " ").strip().splitlines())
}
#: Longest chain of imports from package to package.
CHAIN = 9
#: Python files in the root of `engine`.
ROOT_FILES = 9
#: Lines of engine/pipeline.py: a table of contents of a generation, whose chapters stand elsewhere.
PIPELINE = 165
#: Modules that import by name what they are told, with the reason.
BY_NAME = {
    "engine.bench.device.worker": "a fresh process measures the part that its parent names, a test's own too",
    "engine.imports.deferred": "a library that a stand-in stands for, from a table in the file",
}
#: What a plugin may import when it is loaded, beside Python's own library and ours: what loading it costs anyway.
LIGHT = {"engine", "plugins", "hydra", "omegaconf"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}
CORE = {name: path for name, path in MODULES.items() if not name.startswith("plugins")}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Return every module that a file imports, inside functions and for type checkers too."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
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
    for node in tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def within(name: str, room: str) -> bool:
    return name == room or (name.startswith(f"{room}.") and room != "engine")


def package(name: str) -> str:
    """The row of a module: its package, or itself in the root; "engine" is the door, which is lazy."""
    top, *below = name.split(".")
    return below[0] if top == "engine" and below else top


def arrows() -> dict[str, set[str]]:
    """Which packages import which, by what the files say."""
    found: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        found.setdefault(package(name), set()).update(package(wanted) for wanted in ours(path))
    return {name: wanted - {name} for name, wanted in found.items() if name not in ("engine", "__main__")}


def chain(name: str, found: dict[str, set[str]]) -> tuple[str, ...]:
    """The longest chain of imports that begins at a package."""
    return (name, *max((chain(below, found) for below in found[name]), key=len, default=()))


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_table_is_what_the_files_import() -> None:
    # The benches use the engine as anybody would, through its door.
    found = {name: wanted - {"engine"} for name, wanted in arrows().items()}
    assert found == PACKAGES


def test_a_row_names_only_rows_above_it() -> None:
    seen: set[str] = set()
    for name, wanted in PACKAGES.items():
        assert wanted <= seen, f"{name} imports {wanted - seen}, which stand below it"
        seen.add(name)


def page() -> str:
    """docs/architecture.md: what each package is for, by its own first sentence, and what it imports."""
    rows = ["| package | what it is | imports |", "|---|---|---|"]
    for name, wanted in PACKAGES.items():
        path = MODULES["plugins" if name == "plugins" else f"engine.{name}"]
        about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0].replace("|", "\\|")
        rows.append(f"| `{name}` | {about} | {' '.join(f'`{one}`' for one in sorted(wanted))} |")
    return "\n".join(rows)


def test_the_page_shows_the_table() -> None:
    path = ROOT / "docs" / "architecture.md"
    before, mark, rest = path.read_text("utf-8").partition("<!-- table -->\n")
    shown, end, after = rest.partition("\n<!-- /table -->")
    assert mark
    assert end
    if os.environ.get("MULTITALK_WRITE_DOCS"):
        path.write_text(f"{before}{mark}{page()}{end}{after}", "utf-8")
    else:
        assert shown == page(), "MULTITALK_WRITE_DOCS=1 pytest tests/test_imports.py writes it anew"


def test_no_chain_of_imports_is_longer_than_it_may_be() -> None:
    longest = max((chain(name, PACKAGES) for name in PACKAGES), key=len)
    assert len(longest) <= CHAIN, " -> ".join(longest)


def test_the_root_holds_few_files() -> None:
    assert len(list((ROOT / "engine").glob("*.py"))) <= ROOT_FILES


def test_the_pipeline_stays_a_table_of_contents() -> None:
    assert (ROOT / "engine" / "pipeline.py").read_text("utf-8").count("\n") <= PIPELINE


def test_engine_never_imports_plugins() -> None:
    wrong = {name for name, path in CORE.items() if any(within(wanted, "plugins") for wanted in ours(path))}
    assert not wrong


def test_no_file_outside_a_family_imports_a_family() -> None:
    def family(name: str) -> str:
        return ".".join(name.split(".")[:3]) if within(name, "plugins.families") and name.count(".") > 1 else ""

    wrong = {
        (name, wanted)
        for name, path in MODULES.items()
        for wanted in ours(path)
        if family(wanted) not in ("", family(name))
    }
    assert not wrong


def test_nothing_that_is_installed_imports_scripts_or_tests() -> None:
    wrong = {
        name for name, path in MODULES.items() if {"scripts", "tests"} & {n.partition(".")[0] for n in imported(path)}
    }
    assert not wrong


def test_nothing_is_imported_by_a_name_that_no_import_shows() -> None:
    # Such an import would be an arrow that the table does not see.
    found = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Name) and node.id == "__import__")
        or (isinstance(node, ast.Attribute) and node.attr in ("import_module", "resolve_name"))
        or (isinstance(node, ast.alias) and node.name in ("import_module", "resolve_name"))
    }
    assert found == set(BY_NAME)


def test_no_module_of_the_engine_comes_in_through_its_own_door() -> None:
    # Only the benches do: they use the engine as anybody would.
    wrong = {name for name, path in CORE.items() if "engine" in ours(path) and not within(name, "engine.bench")}
    assert not wrong


def test_there_are_no_circles() -> None:
    order = graphlib.TopologicalSorter({name: ours(path) - {name} for name, path in MODULES.items()})
    order.prepare()


def registers(name: str) -> bool:
    """Whether a module is loaded to see what is installed: all of a plugin; of a family its package and settings."""
    inner = within(name, "plugins.families") and name.count(".") > 2 and not name.endswith(".settings")
    return within(name, "plugins") and not inner


@pytest.mark.parametrize("name", [name for name in MODULES if registers(name)])
def test_plugin_keeps_heavy_imports_inside_functions(name: str) -> None:
    # What a family's package imports of its own is one of these modules, or fails `test_looking_around...`.
    light = LIGHT | ({"plugins"} if within(name, "plugins.families") else set())
    heavy = {top for top in at_load(MODULES[name]) if top not in light and top not in sys.stdlib_module_names}
    assert not heavy


def test_door_is_lazy_and_complete() -> None:
    assert python("import sys, engine; print('torch' in sys.modules, 'hydra' in sys.modules)").startswith("False")
    for name in engine.__all__:
        assert getattr(engine, name) is not None


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["generate", "--help"]])
def test_looking_around_does_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from engine.cli.main import main; main({words!r}); print('torch' in sys.modules)"
    assert python(code).splitlines()[-1] == "False"


def test_the_help_does_not_import_hydra() -> None:
    # It takes as long to import as everything else that the help needs.
    code = "import sys; from engine.cli.main import main; main(['--help']); print('hydra' in sys.modules)"
    assert python(code).splitlines()[-1] == "False"


def test_dry_run_does_not_import_torch() -> None:
    examples = ROOT / "engine" / "examples"
    words = ["generate", "--dry-run", "--image", str(examples / "one.png"), "--audio", str(examples / "one.flac")]
    words += ["--prompt", "a person talks"]
    code = (
        f"import sys; from engine.cli.main import main; status = main({words!r}); print(status, 'torch' in sys.modules)"
    )
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
        assert text.count("\n") <= (600 if {"network", "multitalk", "loading"} & set(path.parts) else 400), path

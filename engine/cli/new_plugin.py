"""`multitalk plugins new NAME`: a small package with one component that works."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from engine.cli.catalog import groups
from engine.cli.parser import Parser
from engine.errors import ConfigError, plain

#: Kinds of component that there is a template for; the first is what is written without --kind.
KINDS = ("sampler", "sink", "reader", "source", "attention")
#: A package of this name could be installed and imported, and the component chosen on the command line.
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
#: Words that mean something else on the command line.
_TAKEN = {"null", "true", "false", "inf", "nan", "schema"}
_LONGEST = 64


def new_plugin(words: Sequence[str]) -> int:
    """Write the package and print its folder. Raises ConfigError."""
    parser = Parser(
        prog="multitalk plugins new",
        usage="multitalk plugins new NAME [--kind KIND] [--folder DIR]",
        description="Write a small package with one component that works: a start for a plugin of your own.",
    )
    parser.flag("--kind", choices=KINDS, default=KINDS[0], help=f"kind of component ({KINDS[0]})")
    parser.flag("--folder", metavar="DIR", help="folder of the package, which must not be there yet (NAME)")
    values, rest = parser.read(words)
    name = parser.one(rest, "NAME")
    check_name(name, values.kind)
    folder = Path(values.folder if values.folder is not None else name)
    write(folder, name, values.kind)
    print(plain(str(folder)))
    hint = f"pip install -e {plain(str(folder))}, and choose {values.kind}={name}"
    print(f"multitalk: wrote a {values.kind}; next: {hint}", file=sys.stderr)
    return 0


def module_of(name: str) -> str:
    """Return the import name of the package."""
    return name.replace("-", "_")


def check_name(name: str, kind: str) -> None:
    """Raise ConfigError for a name that no package can have, and for one that is taken."""
    module = module_of(name)
    if len(name) > _LONGEST or not _NAME.fullmatch(name) or keyword.iskeyword(module) or name in _TAKEN:
        raise ConfigError(
            f"{name[:_LONGEST]!r} cannot be the name of a package",
            field="NAME",
            hint="lower-case letters, digits and '-', a letter first, such as acme-cosine",
        )
    if name in groups().get(kind, ()):
        raise ConfigError(f"there is a {kind} {name!r} already", field="NAME", hint="choose another name")
    if find_spec(module) is not None:
        raise ConfigError(f"there is a module {module!r} already", field="NAME", hint="choose another name")


def write(folder: Path, name: str, kind: str) -> None:
    """Write the package into a new folder. Raises ConfigError where it is there, or cannot be made."""
    module = module_of(name)
    parts = re.split("[-_]", name)
    meant = {"name": name, "module": module, "kind": kind, "Name": "".join(part.capitalize() for part in parts)}
    wanted = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{module}.py": f"{kind}.py",
        f"test_{module}.py": f"test_{kind}.py",
    }
    templates = files("engine.cli") / "plugin_template"
    texts = {
        place: Template((templates / f"{source}.txt").read_text("utf-8")).substitute(meant)
        for place, source in wanted.items()
    }
    try:
        folder.mkdir(parents=True)
        for place, text in texts.items():
            (folder / place).write_text(text, "utf-8")
    except FileExistsError:
        raise ConfigError(f"{folder} is there already", field="--folder", hint="choose another folder") from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot write {folder}: {reason}", field="--folder", hint="choose another folder") from error

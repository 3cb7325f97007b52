"""`multitalk examples [FOLDER]`: the example files that the documents use, in a folder of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from engine.cli.parser import Parser
from engine.errors import ConfigError


def examples(arguments: Sequence[str]) -> int:
    """Copy the packaged examples and print the folder. Raises ConfigError.

    Files that are there already with the same bytes are left; one with other bytes is an error, and nothing is written.
    """
    parser = Parser(
        prog="multitalk examples",
        usage="multitalk examples [FOLDER]",
        description="Copy the example pictures, voices and job files, which the documents use, to FOLDER (examples).",
    )
    _, rest = parser.read(arguments)
    folder = Path(parser.one(rest or ["examples"], "FOLDER"))
    content = {folder / path: data for path, data in _packaged()}
    try:
        for path, data in content.items():
            if path.exists() and path.read_bytes() != data:
                hint = "give another folder, such as multitalk examples example-files"
                raise ConfigError(f"{path} exists with other content", field="FOLDER", hint=hint)
        for path, data in content.items():
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror}"
        raise ConfigError(what, field="FOLDER", hint="give a folder that you may write to") from error
    print(folder)
    return 0


def _packaged() -> Iterator[tuple[Path, bytes]]:
    root = Path(str(files("engine"))) / "examples"
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".md":
            yield path.relative_to(root), path.read_bytes()

"""`multitalk completion bash|zsh|fish`: prints a script for the shell, and writes the list that it completes from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.cli import complete_words
from engine.cli.base import BaseParser
from engine.cli.parser import Parser
from engine.errors import ConfigError, EngineError

Run = Callable[[list[str]], None]

#: Variables that the list depends on.
_VARIABLES = ("MULTITALK_DISABLED_PLUGINS", "MULTITALK_CONFIG_DIR", "XDG_CONFIG_HOME")
#: Values of flags that argparse does not know.
_WORDS = {"--log-level": ["DEBUG", "INFO", "WARNING", "ERROR"], "--log-format": ["auto", "text", "json"]}
#: Commands whose other arguments are files.
_FILES = ("generate", "plan", "show", "again", "retake", "batch", "compare")
_INSTALL = {
    "bash": "multitalk completion bash > ~/.local/share/bash-completion/completions/multitalk",
    "zsh": "multitalk completion zsh > ~/.zfunc/_multitalk  (with fpath+=~/.zfunc before compinit in ~/.zshrc)",
    "fish": "multitalk completion fish > ~/.config/fish/completions/multitalk.fish",
}
_BASH = """\
# Completion of multitalk for bash.
_multitalk() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" cur="${{COMP_WORDS[COMP_CWORD]}}" word about
    [[ $cur == "=" || $cur == ":" ]] && cur=""
    COMPREPLY=()
    while IFS=$'\\t' read -r word about; do
        case "$word" in
            @files) compopt -o filenames 2>/dev/null; COMPREPLY+=($(compgen -f -- "$cur")) ;;
            @dirs) compopt -o filenames 2>/dev/null; COMPREPLY+=($(compgen -d -- "$cur")) ;;
            @nospace) ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done < <({command} bash "$line" 2>/dev/null)
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -F _multitalk multitalk
"""
_ZSH = """\
#compdef multitalk
# Completion of multitalk for zsh.
_multitalk() {{
    local word about
    local -a found shown open opened
    while IFS=$'\\t' read -r word about; do
        case "$word" in
            @files) _files ;;
            @dirs) _files -/ ;;
            @nospace) ;;
            *=) open+=("$word"); opened+=("$word  $about") ;;
            *) found+=("$word"); shown+=("$word  $about") ;;
        esac
    done < <({command} zsh "${{(j: :)words[1,CURRENT-1]}} $PREFIX" 2>/dev/null)
    (( ${{#open}} )) && compadd -Q -S '' -l -d opened -a open
    (( ${{#found}} )) && compadd -Q -l -d shown -a found
    return 0
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _multitalk "$@"; else compdef _multitalk multitalk; fi
"""
_FISH = """\
# Completion of multitalk for fish.
function __multitalk_complete
    for entry in ({command} fish (commandline -cp) 2>/dev/null)
        switch $entry
            case @files '@files*'
                __fish_complete_path (commandline -ct)
            case @dirs '@dirs*'
                __fish_complete_directories (commandline -ct)
            case @nospace '@nospace*'
            case '*'
                echo $entry
        end
    end
end
complete -c multitalk -f -a '(__multitalk_complete)'
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(arguments: Sequence[str], run: Run) -> int:
    """Print the script of a shell and say on stderr where it goes. Raises ConfigError.

    `run` runs a command whose parser is only looked at.
    """
    parser = Parser(
        prog="multitalk completion",
        usage=f"multitalk completion {'|'.join(_SCRIPTS)}",
        description="Print what makes a shell complete commands, flags, groups, keys, their values and file names.\n"
        "To install:\n" + "\n".join(_INSTALL.values()),
    )
    parser.flag("--renew", action="store_true", help="only write the list of words anew (it happens by itself)")
    values, rest = parser.read(arguments)
    if values.renew:
        parser.none(rest)
        write(run)
        return 0
    shell = parser.one(rest, f"the shell ({', '.join(_SCRIPTS)})")
    if shell not in _SCRIPTS:
        raise ConfigError(f"no completion for {shell!r}", field="command line", hint=", ".join(_SCRIPTS))
    write(run)
    command = [sys.executable, "-I", "-S", str(Path(complete_words.__file__).resolve()), str(cache_file())]
    print(_SCRIPTS[shell].format(command=shlex.join(command)), end="")
    if sys.stdout.isatty():
        print(f"# to install: {_INSTALL[shell]}", file=sys.stderr)
    return 0


def cache_file() -> Path:
    """Return the file of the list, one for each Python environment."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()  # noqa: PTH117
    name = hashlib.sha256(sys.prefix.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return folder / "multitalk-engine" / f"completion-{name}.json"


def write(run: Run) -> None:
    """Write the list. Raises ConfigError if it cannot be written."""
    path, text = cache_file(), json.dumps(lists(run))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        Path(file.name).replace(path)
        Path(f"{path}.renewing").unlink(missing_ok=True)
    except OSError as error:
        what = f"{path.parent} cannot be written: {error.strerror}"
        raise ConfigError(what, field="completion", hint="set XDG_CACHE_HOME") from error


def lists(run: Run) -> dict[str, Any]:
    """Return everything that can be completed, and what it was made of."""
    from engine.cli.bench import BENCHES
    from engine.cli.catalog import choices
    from engine.cli.help import COMMANDS
    from engine.cli.models import ABOUT
    from engine.cli.settings import settings_for
    from engine.config_keys.reference import keys
    from engine.plugin.manager import installed

    with contextlib.suppress(EngineError):
        settings_for("generate")
    entrypoints = installed().entrypoints
    about = {name: (entrypoints.config(name).__doc__ or "").partition("\n")[0] for name in entrypoints.names()}
    below: dict[str, dict[str, str]] = {
        "models": dict(ABOUT),
        "bench": {name: bench.about for name, bench in BENCHES.items()},
        "plugins": {"new": "write a package with a component"},
        "config": {"init": "write a first file of settings"},
        "completion": dict.fromkeys(_SCRIPTS, ""),
    }
    commands = about | COMMANDS
    names = [[name] for name in commands] + [[name, word] for name, words in below.items() for word in words]
    groups: dict[str, list[tuple[str, str]]] = {}
    for choice in choices():
        groups.setdefault(choice.group, []).append((choice.name, choice.about))
    return {
        "version": version("multitalk-engine"),
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
        "stamps": [(str(path), complete_words.stamp(path)) for path in dict.fromkeys(_made_of())],
        "commands": commands,
        "below": below,
        "flags": {" ".join(words): _flags(words, run) for words in names},
        "groups": groups,
        "keys": {
            key.name: (
                key.meaning,
                list(key.words) or (["true", "false"] if key.type == "bool" else []),
                _files(key.name),
            )
            for key in keys()
            if not key.group and "NAME" not in key.name and "[]" not in key.name
        },
        "overrides": [*about, "plan", "config", "doctor", "rehearse", "again", "retake"],
        "files": list(_FILES),
    }


def _files(key: str) -> str:
    last = key.rpartition(".")[2]
    if last in ("folder", "path", "keep_folder"):
        return "@dirs"
    return "@files" if last in ("image", "video", "audio", "file", "speakers", "prompts", "images") else ""


def _flags(words: Sequence[str], run: Run) -> dict[str, tuple[Any, str]]:
    """Return the flags of a command: the kind of value of each ("" for none), and its help."""
    found: dict[str, tuple[Any, str]] = {}

    def look(parser: BaseParser) -> None:
        for action in parser._actions:
            kind: Any = ""
            if action.nargs != 0:
                metavar = str(action.metavar or "")
                kind = "@value"
                if action.choices:
                    kind = [str(choice) for choice in action.choices]
                elif re.fullmatch(r"\w+(\|\w+)+", metavar):
                    kind = metavar.split("|")
                elif re.search(r"FILE|PNG|JSON", metavar):
                    kind = "@files"
                elif re.search(r"DIR|FOLDER", metavar):
                    kind = "@dirs"
            for name in action.option_strings:
                found[name] = (_WORDS.get(name, kind), action.help or "")

    BaseParser.observer = look
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(list(words))
    finally:
        BaseParser.observer = None
    return found


def _made_of() -> Iterator[Path]:
    """Yield the files and folders whose change makes the list out of date."""
    from engine.cli.settings import config_folder
    from engine.plugin.manager import loaded

    # Installing, upgrading or removing a package changes the folder.
    yield from (Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    for package in ("engine.conf", *loaded().presets.packages):
        folder = Path(str(files(package)))
        yield folder
        yield from (below for below in folder.iterdir() if below.is_dir() and not below.name.startswith("_"))
    yield config_folder()
    recipes = config_folder() / "recipes"
    yield recipes
    if recipes.is_dir():
        yield from sorted(recipes.glob("*.y*ml"))

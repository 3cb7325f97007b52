"""Answers a shell that asks how a command line goes on: `python -I -S complete_words.py CACHE SHELL LINE`.

It runs at each press of TAB, so it imports nothing but a few modules of Python, and reads a list that
`engine.cli.completion` has written. A list that is out of date is used once more and written anew in the background.
"""

from __future__ import annotations

import json
import os
import sys
import time

#: Seconds after which another process may renew the lists, if the first one has not.
MOST_SECONDS = 60

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Its import would take a fifth of the time.
    from collections.abc import Iterable
    from typing import Any


def main(argv: list[str]) -> None:
    """Print the words that complete LINE, one per line with a tab and what it is; "@files" asks for file names too."""
    cache, shell, line = argv
    lists = read(cache)
    if lists is None:
        print("@files")
        return
    words = split(line)
    current = words.pop() if words else ""
    found, directive = answer(lists, words[1:], current)
    # In bash "=" and ":" part words.
    cut = max(current.rfind("="), current.rfind(":")) + 1 if shell == "bash" else 0
    if directive:
        print(directive)
    for word, about in found:
        print(f"{word[cut:]}\t{' '.join(about.split())[:100]}")


def read(cache: str) -> Any:
    """Return the lists in the file `cache`; None: there is none yet. Starts a process that renews it, if needed."""
    try:
        with open(cache, encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes as long as all the rest
            lists = json.load(file)
    except (OSError, ValueError):
        lists = None
    if lists is None or not fresh(lists):
        renew(cache)
    return lists


def fresh(lists: Any) -> bool:
    """Return whether plugins, versions, recipes and variables are those that the lists were made of."""
    if any(os.environ.get(name) != value for name, value in lists["environment"].items()):
        return False
    return all(stamp(path) == time for path, time in lists["stamps"])


def stamp(path: str | os.PathLike[str]) -> int | None:
    """Return the time at which a file or folder was changed, None if there is none."""
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return None


def renew(cache: str) -> None:
    """Write the lists anew in another process, and do not wait for it; one at a time."""
    import subprocess

    mark = f"{cache}.renewing"
    begun = stamp(mark)
    if begun is not None and abs(time.time_ns() - begun) < MOST_SECONDS * 10**9:
        return
    try:
        os.makedirs(os.path.dirname(cache), exist_ok=True)  # noqa: PTH103, PTH120
        with open(mark, "w", encoding="utf-8"):  # noqa: PTH123
            pass
    except OSError:
        return

    try:  # noqa: SIM105 - contextlib is slow to import
        subprocess.Popen(
            [sys.executable, "-I", "-m", "engine", "completion", "--renew"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        pass


def split(line: str) -> list[str]:
    """Return the words of a line as a shell parts them; the last one is the one that is being typed."""
    words, word, quote, started = [], "", "", False
    index = 0
    while index < len(line):
        character = line[index]
        if quote:
            if character == quote:
                quote = ""
            else:
                word += character
        elif character in "'\"":
            quote, started = character, True
        elif character == "\\" and index + 1 < len(line):
            index += 1
            word += line[index]
            started = True
        elif character.isspace():
            if word or started:
                words.append(word)
            word, started = "", False
        else:
            word += character
        index += 1
    return [*words, word]


def answer(lists: Any, before: list[str], current: str) -> tuple[list[tuple[str, str]], str]:
    """Return (the words with what they are, a directive) for the word `current` after the words `before`."""
    command, *rest = before or [""]
    if not before:
        found = [*lists["commands"].items(), ("--help", "what there is"), ("--version", "the version")]
        if "=" in current:
            return values(lists, current)
        return starting(found, current), "@files" if "/" in current or "." in current else ""
    below = lists["below"].get(command)
    if below and not rest and not current.startswith("-"):
        found = starting(below.items(), current)
        if command != "config" and found:
            return found, ""
    name = f"{command} {rest[0]}" if below and rest and rest[0] in below else command
    flags = lists["flags"].get(name) or lists["flags"].get(command) or {}
    last = before[-1]
    if last in flags and flags[last][0]:
        return of_kind(flags[last][0], current, "")
    if current.startswith("-"):
        flag, equals, _ = current.partition("=")
        if equals:
            return of_kind(flags.get(flag, [""])[0], current, f"{flag}=") if flag in flags else ([], "")
        return starting([(flag, entry[1]) for flag, entry in flags.items()], current), ""
    if command in lists["overrides"]:
        if "=" in current:
            return values(lists, current)
        found = [(f"{group}=", f"{len(names)} choices") for group, names in lists["groups"].items()]
        if current and (command == "config" or "." in current or not starting(found, current)):
            found += [(f"{key}=", entry[0]) for key, entry in lists["keys"].items()]
        if command == "config":
            found += [(key, entry[0]) for key, entry in lists["keys"].items() if current]
            found += list((below or {}).items()) if not rest else []
        matching = starting(found, current)
        return matching, "@files" if command in lists["files"] else "@nospace" if matching else ""
    return [], "@files" if command in lists["files"] else ""


def values(lists: Any, current: str) -> tuple[list[tuple[str, str]], str]:
    """Return the values of `group=` and `key=`."""
    key, _, _ = current.partition("=")
    if key in lists["groups"]:
        return starting([(f"{key}={name}", about) for name, about in lists["groups"][key]], current), ""
    about, words, kind = lists["keys"].get(key, ["", [], ""])
    if kind:
        return [], kind
    return starting([(f"{key}={word}", about) for word in words], current), ""


def of_kind(kind: Any, current: str, prefix: str) -> tuple[list[tuple[str, str]], str]:
    """Return what completes the value of a flag: one of a list, or a directive such as "@files"."""
    if isinstance(kind, list):
        return starting([(f"{prefix}{word}", "") for word in kind], current), ""
    return [], kind if kind.startswith(("@f", "@d")) else ""


def starting(found: Iterable[tuple[str, str]], current: str) -> list[tuple[str, str]]:
    """Return those that begin with what was typed."""
    return [(word, about) for word, about in found if word.startswith(current)]


if __name__ == "__main__":
    main(sys.argv[1:])

"""Take out of a text what a remote caller must not read: paths, keys, hosts of ours, tracebacks."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from engine.redaction.logs import HIDDEN, hide_secrets

PATH = "[path]"
HOST = "[internal host]"

#: Characters of one text that are kept.
_MAX_LENGTH = 500

#: The platform's operations look like paths, and hints name them.
_VERBS = ("/run", "/runsync", "/status", "/stream", "/cancel", "/retry", "/health", "/purge-queue")

_TRACEBACK = re.compile(r"\s*Traceback \(most recent call last\).*", re.DOTALL)
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+)://[^\s'\"<>|`]+")
_DATA = re.compile(r"\bdata:[\w.+-]*/?[\w.+-]*(;[\w.=+-]+)*,[^\s'\"]*", re.IGNORECASE)
#: A path in quotes may have spaces; a bare one ends at the first space, unless more slashes follow.
_PATHS = (
    re.compile(r"(?<=')(?:/|~\w*/|[A-Za-z]:\\|\\\\)[^'\n]*(?=')"),
    re.compile(r'(?<=")(?:/|~\w*/|[A-Za-z]:\\|\\\\)[^"\n]*(?=")'),
    re.compile(
        # Not after a letter (and/or), and not the slashes of a URL, which was shortened before.
        r"(?<![A-Za-z0-9_/.\]*-])(?:/(?=[^\s/])|(?<!:)//+(?=[^\s/])|~(?:[A-Za-z_]\w*)?/|[A-Za-z]:[\\/]|\\\\\w)"
        r"[^\s'\",;)\]]*(?:\s[^\s'\",;()]*[/\\][^\s'\",;)]*)*"
    ),
)
_LONG = r"[A-Za-z0-9+/=_-]"
_KEYS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\bhf_\w{8,}|\brpa_\w{8,}|\b(?:sk|ghp|gho|xox[a-z])[-_][\w-]{8,}"
    r"|\beyJ[\w-]+\.[\w.-]+|\bBearer\s+\S+|\bBasic\s+[A-Za-z0-9+/=]{8,}"
    # Too long for a word of a sentence: a key, a token, a hash, base64.
    rf"|(?<!{_LONG})(?={_LONG}*\d|{_LONG}*[a-z]{_LONG}*[A-Z]){_LONG}{{40,}}"
)
_NAMED = re.compile(
    r"(?i)\b([\w-]{0,40}(?:secret|passwo?r?d|token|signature|credential|api[_-]?key|access[_-]?key(?:[_-]?id)?|authorization)[\w-]*)"
    r"(['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s'\",;&)]+)"
)
_INTERNAL = r"internal|local|localdomain|localhost|lan|intranet|corp|home|private|svc|consul|arpa"
_NAMES = re.compile(rf"(?i)(?<![\w.-])(?:localhost|(?:[\w-]+\.)+(?:{_INTERNAL}))(?![\w-]|\.\w)(?::\d+)?")
_PORT = re.compile(r"(?<![\w.-])[A-Za-z][\w-]*:\d{2,5}(?![\w.:])|(?<=host=')[^'\s]+(?=')")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.]*\w)")
_IPV6 = re.compile(
    r"(?<![\w:.])\[?(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|\d{1,3}(?:\.\d{1,3}){3})?(?:%\w+)?(?:\](?::\d+)?)?(?![\w:])"
)


def scrub(text: str, secrets: Iterable[str] = (), *, local_caller: bool = False) -> str:
    """Return `text` as one line without anything that the caller must not learn.

    `secrets` are hidden everywhere. Of URLs only the scheme and a public host are kept. Paths are kept only for a
    caller on this machine (`local_caller`). Text that looks like a key is hidden even if it is none: the log has the
    full message.
    """
    text = hide_secrets(text, secrets)
    # Before the patterns: on a hostile text some of them take time quadratic in its length.
    text = _TRACEBACK.sub("", text[: 4 * _MAX_LENGTH])
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    text = _DATA.sub("data:...", text)
    text = _URL.sub(_url, text)
    paths_kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        # Replaced for now, because a long path looks like a key.
        paths_kept.append(match[0])
        return f"\0{len(paths_kept) - 1}\0"

    for paths in _PATHS:
        text = paths.sub(keep if local_caller else _path, text)
    # In this order: the value of `Authorization:` has two words.
    text = _KEYS.sub(HIDDEN, text)
    text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
    text = _hosts(text)
    for index in reversed(range(len(paths_kept))):
        text = text.replace(f"\0{index}\0", paths_kept[index])
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."


def _url(match: re.Match[str]) -> str:
    scheme = match[1].lower()
    if scheme == "file":
        return PATH
    try:
        host = urlsplit(match[0]).hostname or ""
    except ValueError:
        host = ""
    if scheme == "s3":
        return "s3://..."
    return f"{scheme}://{host}/..." if _is_public(host) else f"{scheme}://{HOST}/..."


def _path(match: re.Match[str]) -> str:
    path = match[0].rstrip(".:")
    rest = match[0][len(path) :]
    if path in _VERBS:
        return match[0]
    # The file name is kept: it tells the caller which file it is, and nothing about the machine.
    name = re.search(r"[\\/][\w-]+\.[A-Za-z]\w{0,15}$", path)
    return PATH + ("/" + name[0][1:] if name else "") + rest


def _hosts(text: str) -> str:
    own = socket.gethostname()
    # A host name such as `main` is an ordinary word and is not replaced; names of cloud hosts have digits or dashes.
    if len(own) > 3 and not own.isalpha():
        text = re.sub(rf"(?<![\w-]){re.escape(own)}(?![\w-])", HOST, text)
    text = _NAMES.sub(HOST, text)
    text = _PORT.sub(HOST, text)
    text = _IPV4.sub(_numeric(lambda address: address.partition(":")[0]), text)
    return _IPV6.sub(_numeric(lambda address: address.partition("]")[0].lstrip("[").partition("%")[0]), text)


def _numeric(bare: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    def hide(match: re.Match[str]) -> str:
        try:
            return match[0] if ipaddress.ip_address(bare(match[0])).is_global else HOST
        except ValueError:
            return match[0]

    return hide


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        # `host` is the placeholder that hints use.
        return host == "host" or ("." in host and not _NAMES.fullmatch(host))

"""Removes secrets from text for logs and terminals: keys, media data, and URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

HIDDEN = "[hidden]"
#: Characters of one line that are kept.
_MOST = 20_000
#: Shorter texts are not secrets, and hiding them would hide the line.
_LEAST = 4

_NAMED = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)
_DATA = re.compile(r"data:[\w.+;=/-]{0,200},[A-Za-z0-9+/=%_-]*", re.IGNORECASE)
#: Base64 of media, and other text that is too long for a word. A hash has 64 characters.
_LONG = re.compile(r"[A-Za-z0-9+/_=-]{100,}")
#: The host is kept; path and query may contain a key.
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{1,20}://)(?:[^\s/@'\"<>]*@)?([^\s/?#'\"<>\\]*)[^\s'\"<>\\]*")
_SIGNED = re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId)(=|%3D)[^&\s'\"]+")
_HEADER = re.compile(r"(?i)\b(authorization|x-amz-security-token)(['\"]?\s*[:=]\s*b?['\"]?)[^'\"\r\n,}]+")


def hide_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with `[hidden]` in place of each of the `secrets`, the longest first.

    They are found as they are, with their white space narrowed as errors write it, in a repr and in a URL.
    """
    for secret in sorted({secret for secret in secrets if len(secret) >= _LEAST}, key=len, reverse=True):
        narrow = " ".join(secret.split())
        for form in dict.fromkeys((secret, narrow, repr(secret)[1:-1], quote(secret), quote(secret, safe=""))):
            text = text.replace(form, HIDDEN) if form else text
    return text


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without `secrets` and media, and with only scheme and host of each URL."""
    text = hide_secrets(text, secrets)
    text = _DATA.sub(f"data:{HIDDEN}", text)
    text = _LONG.sub(HIDDEN, text)
    text = _URL.sub(_host, text)
    text = _SIGNED.sub(rf"\1\2{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    # Last, because truncating first could leave half of a secret.
    return text if len(text) <= _MOST else f"{text[:_MOST]}... ({len(text)} characters)"


def named_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of the variables whose names mark them as secrets."""
    return tuple(value for name, value in environment.items() if _NAMED.search(name) and len(value) >= 8)


def named_secret(name: str) -> bool:
    """Return whether the name of a variable or a key marks its value as a secret."""
    return bool(_NAMED.search(name))


def _host(match: re.Match[str]) -> str:
    whole = f"{match[1]}{match[2]}"
    return whole if match[0].rstrip("/") == whole else f"{whole}/{HIDDEN}"

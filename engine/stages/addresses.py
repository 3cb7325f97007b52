"""Address -> local file: its scheme, whether it is allowed, and the plugin that opens it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.data import Access
from engine.errors import RequestError
from engine.media.excerpts import EXAMPLE
from engine.text.base64_text import is_base64, is_medium

#: Minimum length in characters of a text that is taken for base64 if no paths are allowed.
_MIN_BASE64 = 16


def scheme_of(address: str) -> str:
    """Return an address' scheme in lower case: "path" for a plain path or a file URL.

    A scheme has at least two characters before `://` (a Windows drive has one), or is `data`.
    """
    if address[:5].lower() == "data:":
        return "data"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", address)
    scheme = match[1].lower() if match else "path"
    return "path" if scheme == "file" else scheme


def bring_file(address: str, field: str, open_address: Callable[..., Path | None], access: Access, into: Path) -> Path:
    if not isinstance(address, str) or not address:
        raise RequestError("no address is given", field=field, hint="give a path or an address with its scheme")
    if scheme_of(address.strip()) != "path":
        # Copied URLs often have spaces around them; file names may really contain them.
        address = address.strip()
    scheme = scheme_of(address)
    if scheme not in access.schemes:
        if scheme == "path" and (error := _no_path(address, field)) is not None:
            raise error
        what = "paths of this machine" if scheme == "path" else f"addresses of the scheme {scheme!r}"
        hint = f"allowed: {', '.join(access.schemes) or 'none'}"
        if "path" in access.schemes and scheme in ("http", "https", "s3"):
            # Who may name paths of this machine also sets its config.
            hint += f"; to allow it: access.schemes=[{','.join((*access.schemes, scheme))}]"
        raise RequestError(
            f"{what} are not allowed here",
            field=field,
            hint=hint,
            code="scheme_refused",
        )
    if scheme == "path":
        address = str(local(address, field, access))
    if access.until is not None and time.monotonic() >= access.until:
        raise _all_late(field, access)
    try:
        path = open_address(address=address, scheme=scheme, access=access, into=into)
    except RequestError as error:
        if error.code == "download_timeout" and access.until is not None and time.monotonic() >= access.until:
            raise _all_late(field, access) from error
        # A plugin does not know which input of the request it opens.
        raise RequestError(error.what, field=error.field or field, hint=error.hint, code=error.code) from error
    if path is None:
        raise RequestError(f"no installed plugin opens {scheme!r} addresses", field=field, hint="multitalk plugins")
    size = path.stat().st_size
    if size == 0:
        hint = "check that it was written completely"
        raise RequestError("the file is empty (0 bytes)", field=field, hint=hint, code="file_empty")
    if size > access.max_bytes:
        hint = f"at most {access.max_bytes} are allowed"
        raise RequestError(f"the file has {size} bytes", field=field, hint=hint, code="file_too_large")
    return path


#: How a URL begins whose scheme is absent or misspelt: `www.example.org/a`, `//example.org/a`, `https:/example.org/a`.
_NO_URL = re.compile(
    r"(?:https?[:/\\;.]+|//)?(?=[^/\s])(?:www\.|(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?::\d+)?/)", re.IGNORECASE
)


def _no_path(address: str, field: str) -> RequestError | None:
    """Return an error if an address without a scheme looks like a URL or like base64 text, else None."""
    text = address.strip()
    if _NO_URL.match(text):
        return RequestError(
            f"{short(text)} is not a URL: its scheme is missing or misspelt",
            field=field,
            hint="put https:// in front of the host",
            code="address_invalid",
        )
    if len(text) >= _MIN_BASE64 and (is_medium(text) or is_base64(text)) and not text.startswith("/"):
        return RequestError(
            f"a text of {len(text)} characters is not an address, and too short or incomplete for a file as base64",
            field=field,
            hint="send the complete base64 text of the file, or data:image/png;base64, followed by it",
            code="bad_base64",
        )
    return None


def local(address: str, field: str, access: Access) -> Path:
    """Resolve a path or file URL, with symbolic links, and check that it is in an allowed folder."""
    text = address
    if re.match(r"file://", address, re.IGNORECASE):
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise RequestError(f"{address!r} names another host", field=field, hint="write file:///folder/file")
        text = unquote(parts.path)
    try:
        path = Path(text).resolve()
        allowed = access.folders is None or any(path.is_relative_to(folder.resolve()) for folder in access.folders)
        if not allowed:
            folders = ", ".join(str(folder) for folder in access.folders or ()) or "none"
            raise RequestError(f"{short(text)} is outside the allowed folders", field=field, hint=f"allowed: {folders}")
        if path.is_dir():
            raise RequestError(f"{short(text)} is a folder", field=field, hint="name a file in it")
        if not path.exists():
            hint = f"looked in {short(str(path.parent))}"
            if path.with_name(path.name.rpartition("#")[0] or path.name).is_file():
                hint = f"the text after # is not valid; write it as {EXAMPLE}"
            if _NO_URL.match(text.strip()):
                hint += "; if it is a URL, put https:// in front of the host"
            raise RequestError(f"{short(text)} does not exist", field=field, hint=hint)
        if not path.is_file():
            raise RequestError(f"{short(text)} is not a regular file", field=field, hint="copy it to a file first")
        with path.open("rb"):
            pass
    except (OSError, ValueError, RuntimeError) as error:
        # Such as a NUL in the name, a name that is too long, a loop of links, or no permission.
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{short(text)} cannot be opened: {reason}", field=field, hint="name a file") from error
    return path


def short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}")


def _all_late(field: str, access: Access) -> RequestError:
    return RequestError(
        f"the request's addresses take longer than {access.total_timeout:g} seconds, the limit for all together",
        field=field,
        hint="use faster servers or smaller files, or raise access.total_timeout",
        code="download_timeout",
    )

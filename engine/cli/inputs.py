"""Files without a flag: `multitalk generate one.png one.flac`. What each one is decides what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.errors import ConfigError
from engine.serving.jobs.speakers import SILENCE

#: Flag of each kind of file, and the kind in words.
_KINDS = {"image": "a picture", "video": "a video", "audio": "a voice"}
#: Endings of addresses, which are not opened here.
_ENDINGS = {
    "image": "png jpg jpeg webp bmp gif tif tiff heic heif avif",
    "video": "mp4 mov mkv avi m4v mpg mpeg",
    "audio": "wav flac mp3 m4a aac ogg oga opus wma aif aiff",
}
_KIND_OF = {f".{ending}": kind for kind, endings in _ENDINGS.items() for ending in endings.split()}
#: Brands of ISO files that are pictures.
_PICTURES = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_PATH = ("/", "./", "../", "~/")
#: Request flags that name files; none of them goes with files without a flag.
_FLAGS = ("image", "images", "video", "audio", "speakers", "image_at")


def is_file_word(word: str) -> bool:
    """Return whether an argument is meant as a file or an address, and not as an override or a flag."""
    if word.startswith(_PATH) or _ADDRESS.match(word):
        return True
    return "=" not in word and not word.startswith(("~", "-"))


def split_files(rest: Sequence[str], options: dict[str, Any], command: str) -> list[str]:
    """Move the files in `rest` to the `options` of the request, and return the other arguments.

    Raises ConfigError for what is no picture, video or voice, and where flags name files too.
    """
    files = [word for word in rest if is_file_word(word)]
    if not files:
        return list(rest)
    found: dict[str, list[str]] = {"image": [], "video": [], "audio": []}
    for word in files:
        found[kind_of(word, command)].append(word)
    given = [f"--{name.replace('_', '-')}" for name in _FLAGS if options.get(name)]
    if given:
        raise ConfigError(
            f"{files[0]!r} stands without a flag, and {given[0]} is given",
            field="command line",
            hint="name all files by flags (--image, --audio, --video), or none",
        )
    pictures = [*found["image"], *found["video"]]
    if len(pictures) > 1:
        raise ConfigError(
            f"{pictures[0]!r} and {pictures[1]!r} are both pictures",
            field="command line",
            hint="give one picture or video; others by time with --image-at TIME FILE",
        )
    options.update({kind: names[0] for kind, names in found.items() if names and kind != "audio"})
    if found["audio"]:
        options["audio"] = found["audio"]
    return [word for word in rest if word not in files]


def kind_of(word: str, command: str) -> str:
    """Return "image", "video" or "audio". Raises ConfigError where it cannot be told."""
    if word == SILENCE:
        return "audio"
    if word.startswith("data:"):
        kind = word[5:].partition("/")[0]
        return kind if kind in _KINDS else _unknown("the data: URL")
    if _ADDRESS.match(word):
        # An address is not fetched before the whole command is understood.
        kind = _KIND_OF.get(Path(urlsplit(word).path).suffix.lower(), "")
        return kind or _unknown(repr(word.partition("?")[0]))
    path = Path(word).expanduser()
    if not path.exists() and "#" in word:
        path = Path(word.rpartition("#")[0]).expanduser()
    if path.is_file():
        return _look(path) or _unknown(repr(str(path)))
    if path.is_dir():
        raise ConfigError(f"{word!r} is a folder", field="command line", hint="give a picture, a video or voices")
    if path.suffix.lower() in _KIND_OF:
        where = f"{str(path.parent)!r} is not a folder" if not path.parent.is_dir() else "check the name"
        raise ConfigError(f"there is no file {word!r}", field="command line", hint=where)
    hint = f"put texts with spaces in quotes; see {command} --help"
    if re.search(r"\s", word):
        hint = f'for what the video shows: --prompt "..."; {hint}'
    raise ConfigError(
        f"{word!r} is neither a flag nor group=name nor key=value, and there is no such file",
        field="command line",
        hint=hint,
    )


def _look(path: Path) -> str:
    """Return the kind of a local file by its content, "" for none of the three."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read: {error.strerror}", field="command line", hint="check the file's permissions"
        ) from error
    if not head:
        raise ConfigError(
            f"{str(path)!r} is empty (0 bytes)", field="command line", hint="check that it was written completely"
        )
    if head.startswith(
        (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cJXL", b"\xff\x0a")
    ):
        return "image"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image"
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURES:
        return "image"
    from av import FFmpegError
    from av.stream import Disposition

    from engine.media.containers import open_input

    try:
        with open_input(path) as container:
            moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if moving:
                # FFmpeg takes any text for a film of subtitles or letters.
                return "" if container.format.name in ("tty", "ansi") else "video"
            return "audio" if container.streams.audio else ""
    except (FFmpegError, OSError, ValueError):
        return ""


def _unknown(name: str) -> str:
    raise ConfigError(
        f"it cannot be told whether {name} is a picture, a video or a voice",
        field="command line",
        hint="name it by a flag: --image, --video, --audio, --speakers, --prompts",
    )

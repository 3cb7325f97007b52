"""The studio's history: a folder with one folder for each video, which survives restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from engine.errors import ConfigError
from engine.files.atomic import make_folder, write
from engine.serving.studio.form import Form, read_form

#: Names of entries, which appear in addresses.
ID = re.compile(r"[0-9a-f]{16}")
RUNNING = "IN_PROGRESS"
#: Largest side of the small picture of an entry, in pixels.
_THUMB = 320
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


@dataclass(frozen=True)
class Entry:
    """One video of the history, or one that is being made."""

    id: str
    #: Seconds since the epoch.
    created: float
    #: As `Status.state` of the client; RUNNING also while it waits.
    state: str
    #: `Form.settings`, and field of the form -> name of the file in the entry's folder.
    form: Mapping[str, Any]
    media: Mapping[str, str]
    #: The job's input with the names of its files in place of media, for the code of the job.
    job: Mapping[str, Any]
    model: str = ""
    #: The job's id at a worker elsewhere; "" for one of this process.
    remote: str = ""
    #: What the worker answered, without the video.
    output: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    #: The field of the form that the error is about.
    field: str = ""
    #: Seconds that the job took.
    seconds: float | None = None
    #: The entry of which this is a retake, and its window from 1.
    of: str = ""
    window: int = 0

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self.state != RUNNING


class History:
    """The entries in a folder. All methods may be called from any thread."""

    def __init__(self, root: Path) -> None:
        """Create the folder, for its owner only. Raises ConfigError if that is impossible."""
        self.root = root.absolute()
        self._lock = threading.Lock()
        try:
            make_folder(self.root, mode=0o700)
            probe = self.root / f".{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(
                f"cannot write {self.root}: {reason}", field="entrypoint.history", hint="give a folder of yours"
            ) from error

    def add(self, form: Mapping[str, Any], media: Mapping[str, str], **more: Any) -> Entry:
        """Copy `media` (field -> path) into a new entry and return it. Raises OSError."""
        name = secrets.token_hex(8)
        folder = self.root / name
        make_folder(folder, mode=0o700)
        kept = {}
        for key, path in media.items():
            kept[key] = key + _suffix(path)
            shutil.copyfile(path, folder / kept[key])
        if "picture" in kept:
            _thumb(folder / kept["picture"], folder / "thumb.jpg")
        entry = Entry(name, time.time(), RUNNING, form, kept, job={}, **more)
        self._save(entry)
        return entry

    @contextlib.contextmanager
    def inbox(self, form: Form) -> Iterator[Form]:
        """Yield `form` with its media inside the history's folder, where the engine may read them, until the end."""
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=self.root) as folder:
            paths = {}
            for key, path in form.media().items():
                paths[key] = str(Path(folder) / (key + _suffix(path)))
                try:
                    os.link(path, paths[key])
                except OSError:
                    # Another disk.
                    shutil.copyfile(path, paths[key])
            yield read_form(form.settings(), paths)

    def update(self, name: str, **changes: Any) -> Entry:
        """Change fields of an entry and return it. Raises KeyError for one that does not exist, and OSError."""
        with self._lock:
            entry = replace(self._load(name), **changes)
            self._save(entry)
        return entry

    def get(self, name: str) -> Entry | None:
        """Return an entry, or None if there is none of that name that can be read."""
        try:
            return self._load(name)
        except KeyError:
            return None

    def path(self, name: str, file: str) -> Path:
        """Return the path of a file of an entry, which may not exist. Raises KeyError for a name of no entry."""
        if not ID.fullmatch(name):
            raise KeyError(name)
        return self.root / name / Path(file).name

    def files(self, entry: Entry) -> dict[str, str]:
        """Return field -> path of an entry's media that still exist."""
        paths = {key: self.path(entry.id, file) for key, file in entry.media.items()}
        return {key: str(path) for key, path in paths.items() if path.is_file()}

    def newest(self, most: int = 60) -> list[Entry]:
        """Return the newest entries, newest first."""
        names = [path.name for path in self.root.iterdir() if ID.fullmatch(path.name)]
        found = [entry for name in names if (entry := self.get(name)) is not None]
        return sorted(found, key=lambda entry: entry.created, reverse=True)[:most]

    def remove(self, name: str) -> None:
        """Remove an entry with its files; nothing happens if there is none."""
        with contextlib.suppress(KeyError):
            shutil.rmtree(self.path(name, "entry.json").parent, ignore_errors=True)

    def _load(self, name: str) -> Entry:
        try:
            values = json.loads(self.path(name, "entry.json").read_text("utf-8"))
            known = {one.name for one in fields(Entry)}
            return Entry(**{key: value for key, value in values.items() if key in known} | {"id": name})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise KeyError(name) from error

    def _save(self, entry: Entry) -> None:
        write(self.root / entry.id / "entry.json", json.dumps(asdict(entry), ensure_ascii=False).encode())


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _thumb(picture: Path, path: Path) -> None:
    # A picture that cannot be read gets no small one; the job says what is wrong with it.
    with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(picture) as image:
        image.draft("RGB", (_THUMB, _THUMB))
        small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((_THUMB, _THUMB))
        small.save(path, "JPEG", quality=80)

"""Download a preset: only its files, several at a time, each verified before it gets its final name.

At any moment a folder contains, under their final names, only complete and verified files. Partial downloads are in
`.multitalk/parts` under generated names. A killed run resumes, and nothing is downloaded twice.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypeVar

from engine.errors import Cancelled, SourceError
from engine.files.atomic import sync_folder
from engine.files.checksums import git_sha1_of, sha256_of
from engine.hub.lock import LEASE, locked
from engine.hub.manifest import COMMIT, File, Preset
from engine.hub.progress import Progress
from engine.hub.record import PRIVATE, Entry, Record, records
from engine.hub.remote import WAITS, HubMetadata, ask, fetch
from engine.text.amounts import amount

T = TypeVar("T")
#: Bytes that must remain free on the disk.
_MARGIN = 64 * 10**6
#: Errors of a folder or its disk, not of this program.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
#: Loggers that write addresses: of the hub's library and of its HTTP library, whose name depends on the version.
_LOUD = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
#: While downloads run, possibly in several threads: the settings from before the first one, and their number.
_before: dict[str, int] = {}
_BEFORE_LOCK = threading.Lock()
#: Bytes per write.
_PIECE = 64 * 2**10


@dataclass
class Options:
    """How to download a preset."""

    #: Number of files that are downloaded at the same time.
    workers: int = 4
    #: Replace files that changed since their download, and foreign files under a needed name.
    repair: bool = False
    waits: Sequence[float] = WAITS
    lease: float = LEASE
    #: Where progress is written; None: nowhere.
    out: TextIO | None = None
    say: Callable[[str], None] = field(default=lambda _: None)


def pull(preset: Preset, root: Path, options: Options | None = None) -> Path:
    """Download all missing files of `preset` below `root`, verify them, and return their folder.

    Raises SourceError if the hub refuses or offers other files, the disk is too small or full, another file has a
    needed name, a file is missing while HF_HUB_OFFLINE is set, or the lock is lost. Downloaded bytes are kept.
    """
    options = options or Options()
    folder = root / preset.folder
    try:
        if is_complete(preset, folder):
            return folder
        with _quiet_hub(), locked(folder, lease=options.lease, say=options.say) as stop:
            # Another process may have downloaded everything while this one waited.
            if not is_complete(preset, folder):
                _Pull(preset, root, options, stop).run()
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise SourceError(
            f"{folder} cannot be written to: {error.strerror}",
            field="--model-path",
            hint="free disk space or allow writing, then start again to resume",
        ) from error
    return folder


def is_complete(preset: Preset, folder: Path) -> bool:
    """Return whether all files of `preset` were downloaded to `folder`, and none has changed. Raises SourceError."""
    record = Record(folder)
    # The index itself first: what it names must not be believed if it has changed.
    if not record.has_all(preset.name, [file.to for file in preset.files]):
        return False
    whole = preset.with_shards(folder)
    return whole == preset or record.has_all(preset.name, [file.to for file in whole.files])


class _Pull:
    """One run over the files of a preset, under the folder's lock."""

    def __init__(self, preset: Preset, root: Path, options: Options, stop: threading.Event) -> None:
        self.folder = root / preset.folder
        self.options = options
        self.record = Record(self.folder)
        self._siblings = [record for record in records(root) if record.folder != self.folder]
        self._preset = preset
        self._files = [self._pin(file) for file in preset.files]
        self._stop = stop
        self._writing = threading.Lock()

    def run(self) -> None:
        preset, record = self._preset, self.record
        if preset.name in record.complete:
            del record.complete[preset.name]
            record.save()
        self._get_all()
        whole = preset.with_shards(self.folder)
        if whole != preset:
            self._preset, self._files = whole, [self._pin(file) for file in whole.files]
            self._get_all()
        record.complete[preset.name] = [file.to for file in self._files]
        record.save()

    def _get_all(self) -> None:
        """Download the files that are missing."""
        preset, record = self._preset, self.record
        to_get = [file for file in self._files if not record.unchanged(file.to)]
        to_get = [file for file in to_get if not self._link_from_sibling(file)]
        metadata: dict[File, HubMetadata] = {}
        if not _offline():
            metadata = dict(zip(to_get, self._each(lambda file: ask(file, file.revision), to_get), strict=True))
        # A changed or unrecorded file may still have the published content.
        self._adopt([file for file in to_get if (self.folder / file.to).exists()], metadata)
        missing = [file for file in to_get if not record.unchanged(file.to)]
        if missing and _offline():
            raise SourceError(
                f"{preset.name} lacks {', '.join(file.to for file in missing)}",
                field="download",
                hint="unset HF_HUB_OFFLINE to download it",
            )
        self._check_disk(missing, metadata)
        have = sum(record.entries[file.to].size for file in self._files if file not in missing)
        total = have + sum(metadata[file].size for file in missing)

        def measure() -> int:
            return have + sum(self._have(file, metadata[file]) for file in missing)

        self.options.say(f"{preset.name}: {len(missing)} of {len(self._files)} files to get, into {self.folder}")
        with Progress(total, measure, self.options.out if missing else None):
            self._each(lambda file: self._get(file, metadata[file]), missing)

    def _pin(self, file: File) -> File:
        """Return `file` with the commit, size and SHA-256 of its first download, if the manifest has none."""
        for record in (self.record, *self._siblings):
            for entry in record.entries.values():
                if entry.repository != file.repository:
                    continue
                if COMMIT.fullmatch(file.revision) and entry.revision != file.revision:
                    continue
                file = replace(file, revision=entry.revision)
                if entry.path == file.path:
                    return replace(file, size=entry.size, exact=True, sha256=file.sha256 or entry.sha256)
        return file

    def _link_from_sibling(self, file: File) -> bool:
        """Hard-link a file that another preset's folder has; return False if that is not possible."""
        target = self.folder / file.to
        if target.exists():
            return False
        for record in self._siblings:
            for place, entry in record.entries.items():
                if entry.key == file.key and entry.revision == file.revision and record.unchanged(place):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(OSError):
                        os.link(record.folder / place, target)
                        self._enter(file.to, entry)
                        return True
        return False

    def _adopt(self, there: Sequence[File], metadata: dict[File, HubMetadata]) -> None:
        """Record existing files with the published content. Raises SourceError for others, unless `repair` is set."""
        wrong = []
        for file in there:
            self.options.say(f"verifying the existing {file.to}")
            try:
                self._enter(file.to, self._verified(file, metadata.get(file), self.folder / file.to))
            except _WrongContentError as error:
                wrong.append(f"{file.to} ({error})")
        if wrong and not self.options.repair:
            raise SourceError(
                f"other files have needed names in {self.folder}: {', '.join(wrong)}",
                field="--model-path",
                hint="move them away, or replace them with --repair",
            )

    def _check_disk(self, files: Sequence[File], metadata: dict[File, HubMetadata]) -> None:
        needed = sum(metadata[file].size - self._have(file, metadata[file]) for file in files)
        free = shutil.disk_usage(self.folder).free
        if needed and needed + _MARGIN > free:
            raise SourceError(
                f"{self._preset.name} needs {amount(needed)} more in {self.folder}, where {amount(free)} are free",
                field="--model-path",
                hint="enlarge the volume, or list unneeded files with: multitalk models prune",
            )

    def _part(self, file: File, metadata: HubMetadata) -> Path:
        """Return the path of the partial download of `file`. Raises SourceError.

        The name is a hash: nothing that a server sends becomes part of a path. It ends in .part, so that no program
        reads or runs an incomplete file because of its name.
        """
        name = hashlib.sha256(f"{file.to}\0{metadata.etag}".encode()).hexdigest()
        parts = self.folder / PRIVATE / "parts"
        part = parts / f"{name}.part"
        if part.resolve().parent != parts.resolve():
            raise SourceError(f"{part} is a link to another folder", field="--model-path", hint="remove the link")
        return part

    def _have(self, file: File, metadata: HubMetadata) -> int:
        if self.record.unchanged(file.to):
            return metadata.size
        with suppress(OSError):
            return min(self._part(file, metadata).stat().st_size, metadata.size)
        return 0

    def _get(self, file: File, metadata: HubMetadata) -> None:
        part, target = self._part(file, metadata), self.folder / file.to
        part.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            metadata = fetch(file, metadata, part, waits=self.options.waits, pause=self._pause)
            try:
                entry = self._verified(file, metadata, part)
                break
            except _WrongContentError as error:
                # A loss of power can leave the length of a file without its bytes: download it again, once.
                part.unlink()
                if attempt == 2:
                    raise SourceError(
                        f"the downloaded {file.path} of {file.repository} is damaged: {error}",
                        field="download",
                        hint="start again later; if it happens again, the connection or the mirror changes files",
                    ) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)
        self._enter(file.to, entry)
        self.options.say(f"downloaded {file.to}, {amount(metadata.size)}")

    def _verified(self, file: File, metadata: HubMetadata | None, path: Path) -> Entry:
        """Return the record's entry of a file with the expected content. Raises _WrongContentError."""
        stat = path.stat()
        size = metadata.size if metadata else file.size if file.exact else stat.st_size
        if stat.st_size != size:
            raise _WrongContentError(f"{stat.st_size} bytes instead of {size}")
        sha256 = sha256_of(path, self._pause)
        expected = file.sha256 or (metadata.sha256 if metadata else "")
        if expected and sha256 != expected:
            raise _WrongContentError(f"SHA-256 {sha256} instead of {expected}")
        if not expected and not (metadata and len(metadata.etag) == 40 and git_sha1_of(path) == metadata.etag):
            raise _WrongContentError("not the content that the hub states" if metadata else "its SHA-256 is not known")
        entry = self.record.entries.get(file.to)
        trust = entry.trust if entry and entry.sha256 == sha256 else _trust(self._preset, file)
        revision = metadata.commit if metadata else file.revision
        return Entry(file.repository, file.path, revision, size, sha256, trust, stat.st_mtime_ns)

    def _enter(self, place: str, entry: Entry) -> None:
        with self._writing:
            self.record.entries[place] = entry
            self.record.save()

    def _each(self, work: Callable[[File], T], files: Sequence[File]) -> list[T]:
        """Do `work` for several files at a time; the first failure stops the others, which keep their bytes."""

        def work_unless_stopped(file: File) -> T:
            self._pause(0)
            return work(file)

        with ThreadPoolExecutor(self.options.workers, thread_name_prefix="multitalk-pull") as pool:
            running: list[Future[T]] = [pool.submit(work_unless_stopped, file) for file in files]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and not future.exception() for future in running):
                    self._stop.set()
                    pool.shutdown(cancel_futures=True)
        # The failure itself, not the cancellations that it caused.
        errors = [future.exception() for future in running if not future.cancelled()]
        for error in sorted((e for e in errors if e is not None), key=lambda e: isinstance(e, Cancelled)):
            raise error
        return [future.result() for future in running]

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Cancelled("download")


class _WrongContentError(Exception):
    """A file does not have the expected content."""


def _trust(preset: Preset, file: File) -> str:
    original = next(one for one in preset.files if one.to == file.to)
    return "manifest" if original.sha256 else "first use"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Make the hub's library write small pieces, so that a lost connection loses few bytes, and silence its loggers.

    Its warnings quote signed addresses, and so do the lines that its HTTP library logs for each request. This package
    reports everything that a user needs to know.
    """
    from huggingface_hub import constants, file_download  # noqa: F401 - its import sets the level of the logger

    with _BEFORE_LOCK:
        if not _before:
            _before.update({name: logging.getLogger(name).level for name in _LOUD}, piece=constants.DOWNLOAD_CHUNK_SIZE)
        _before["pulls"] = _before.get("pulls", 0) + 1
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        constants.DOWNLOAD_CHUNK_SIZE = _PIECE
    try:
        yield
    finally:
        with _BEFORE_LOCK:
            _before["pulls"] -= 1
            if not _before["pulls"]:
                constants.DOWNLOAD_CHUNK_SIZE = _before["piece"]
                for name in _LOUD:
                    logging.getLogger(name).setLevel(_before[name])
                _before.clear()

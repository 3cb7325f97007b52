"""Get a preset: only its files, several at a time, each verified before it stands in its place.

At any moment a folder holds, under their own names, only whole and verified files; what is on its way lies in
`.multitalk/parts` under a name that is made here. A killed run resumes, and nothing is downloaded twice.
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
from engine.hub.remote import WAITS, Stated, ask, fetch
from engine.text.amounts import amount

T = TypeVar("T")
#: Bytes that stay free on the disk.
_MARGIN = 64 * 10**6
#: What is wrong with a folder, in place of with us.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
#: Loggers that write addresses: of the hub's library, and of the HTTP library it brings, whose name goes by version.
_LOUD = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
#: While pulls run, in several threads maybe: what was set before the first of them, and how many there are.
_before: dict[str, int] = {}
_MANNERS = threading.Lock()
#: Bytes that are written at a time.
_PIECE = 64 * 2**10


@dataclass
class Options:
    """How to get a preset."""

    #: Files at a time.
    workers: int = 4
    #: Replace files that are in the way: changed ones, and strangers under a name of ours.
    repair: bool = False
    waits: Sequence[float] = WAITS
    lease: float = LEASE
    #: Where progress is written, if anywhere.
    out: TextIO | None = None
    say: Callable[[str], None] = field(default=lambda _: None)


def pull(preset: Preset, root: Path, options: Options | None = None) -> Path:
    """Have all files of `preset` below `root`, verified, and return their folder.

    Raises SourceError: the hub refuses or offers other files, the disk is too small or full, a file is in the way, or
    HF_HUB_OFFLINE is set and something is missing, the lock is lost. What has arrived stays.
    """
    options = options or Options()
    folder = root / preset.folder
    places = [file.to for file in preset.files]
    try:
        if Record(folder).has_all(preset.name, places):
            return folder
        with _hub_manners(), locked(folder, lease=options.lease, say=options.say) as stop:
            # Another process may have got all of it while this one waited.
            if not Record(folder).has_all(preset.name, places):
                _Pull(preset, root, options, stop).run()
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise SourceError(
            f"{folder} cannot be written to: {error.strerror}",
            field="--model-path",
            hint="make room or get the right to write, then start again: it goes on from there",
        ) from error
    return folder


class _Pull:
    """One run over the files of a preset, under the folder's lock."""

    def __init__(self, preset: Preset, root: Path, options: Options, stop: threading.Event) -> None:
        self.folder = root / preset.folder
        self.options = options
        self.record = Record(self.folder)
        self._siblings = [record for record in records(root) if record.folder != self.folder]
        self._preset = preset
        self._files = [self._pinned(file) for file in preset.files]
        self._stop = stop
        self._writing = threading.Lock()

    def run(self) -> None:
        preset, record = self._preset, self.record
        if preset.name in record.complete:
            del record.complete[preset.name]
            record.save()
        wanted = [file for file in self._files if not record.unchanged(file.to)]
        wanted = [file for file in wanted if not self._linked(file)]
        stated: dict[File, Stated] = {}
        if not _offline():
            stated = dict(zip(wanted, self._each(lambda file: ask(file, file.revision), wanted), strict=True))
        # A file that changed, or that we know nothing of, may be the very one.
        self._adopt([file for file in wanted if (self.folder / file.to).exists()], stated)
        missing = [file for file in wanted if not record.unchanged(file.to)]
        if missing and _offline():
            raise SourceError(
                f"{preset.name} lacks {', '.join(file.to for file in missing)}",
                field="download",
                hint="unset HF_HUB_OFFLINE to have it fetched",
            )
        self._check_disk(missing, stated)
        have = sum(record.entries[file.to].size for file in self._files if file not in missing)
        total = have + sum(stated[file].size for file in missing)

        def measure() -> int:
            return have + sum(self._have(file, stated[file]) for file in missing)

        self.options.say(f"{preset.name}: {len(missing)} of {len(self._files)} files to get, into {self.folder}")
        with Progress(total, measure, self.options.out if missing else None):
            self._each(lambda file: self._get(file, stated[file]), missing)
        record.complete[preset.name] = [file.to for file in preset.files]
        record.save()

    def _pinned(self, file: File) -> File:
        """Hold a file that the manifest leaves open to what came when it was first downloaded."""
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

    def _linked(self, file: File) -> bool:
        """Share a file that another preset's folder has, where the file system can."""
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

    def _adopt(self, there: Sequence[File], stated: dict[File, Stated]) -> None:
        """Take files that are there and are the published ones; refuse, or give way, where they are not."""
        wrong = []
        for file in there:
            self.options.say(f"verifying {file.to}, which is there already")
            try:
                self._enter(file.to, self._verified(file, stated.get(file), self.folder / file.to))
            except _WrongContent as error:
                wrong.append(f"{file.to} ({error})")
        if wrong and not self.options.repair:
            raise SourceError(
                f"in {self.folder} other files are in the way: {', '.join(wrong)}",
                field="--model-path",
                hint="move them away, or have them replaced with --repair",
            )

    def _check_disk(self, files: Sequence[File], stated: dict[File, Stated]) -> None:
        needed = sum(stated[file].size - self._have(file, stated[file]) for file in files)
        free = shutil.disk_usage(self.folder).free
        if needed and needed + _MARGIN > free:
            raise SourceError(
                f"{self._preset.name} needs {amount(needed)} more in {self.folder}, where {amount(free)} are free",
                field="--model-path",
                hint="make the volume larger, or see what can go with: multitalk models prune",
            )

    def _part(self, file: File, stated: Stated) -> Path:
        """Return where what arrives of `file` is kept. Raises SourceError.

        The name is a hash of ours: nothing that a server says becomes part of a path. It ends in .part, so that nobody
        takes half a file for weights, or for anything else that is read or run because of how it is called.
        """
        name = hashlib.sha256(f"{file.to}\0{stated.etag}".encode()).hexdigest()
        parts = self.folder / PRIVATE / "parts"
        part = parts / f"{name}.part"
        if part.resolve().parent != parts.resolve():
            raise SourceError(f"{part} leads elsewhere", field="--model-path", hint="remove that link")
        return part

    def _have(self, file: File, stated: Stated) -> int:
        if self.record.unchanged(file.to):
            return stated.size
        with suppress(OSError):
            return min(self._part(file, stated).stat().st_size, stated.size)
        return 0

    def _get(self, file: File, stated: Stated) -> None:
        part, target = self._part(file, stated), self.folder / file.to
        part.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            stated = fetch(file, stated, part, waits=self.options.waits, pause=self._pause)
            try:
                entry = self._verified(file, stated, part)
                break
            except _WrongContent as error:
                # A loss of power can leave the length of a file and not its bytes: once, that is mended from the start.
                part.unlink()
                if attempt == 2:
                    raise SourceError(
                        f"what arrives as {file.path} of {file.repository} is damaged: {error}",
                        field="download",
                        hint="start again later; if it stays so, the connection or the mirror alters files",
                    ) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        sync_folder(target.parent)
        self._enter(file.to, entry)
        self.options.say(f"got {file.to}, {amount(stated.size)}")

    def _verified(self, file: File, stated: Stated | None, path: Path) -> Entry:
        """Return the entry of a file that is what it should be. Raises _WrongContent."""
        stat = path.stat()
        size = stated.size if stated else file.size if file.exact else stat.st_size
        if stat.st_size != size:
            raise _WrongContent(f"{stat.st_size} bytes in place of {size}")
        sha256 = sha256_of(path, self._pause)
        wanted = file.sha256 or (stated.sha256 if stated else "")
        if wanted and sha256 != wanted:
            raise _WrongContent(f"SHA-256 {sha256} in place of {wanted}")
        if not wanted and not (stated and len(stated.etag) == 40 and git_sha1_of(path) == stated.etag):
            raise _WrongContent("not the content that the hub states" if stated else "nothing tells what it should be")
        known = self.record.entries.get(file.to)
        trust = known.trust if known and known.sha256 == sha256 else _trust(self._preset, file)
        revision = stated.commit if stated else file.revision
        return Entry(file.repository, file.path, revision, size, sha256, trust, stat.st_mtime_ns)

    def _enter(self, place: str, entry: Entry) -> None:
        with self._writing:
            self.record.entries[place] = entry
            self.record.save()

    def _each(self, work: Callable[[File], T], files: Sequence[File]) -> list[T]:
        """Do `work` for several files at a time; the first that fails stops the others, which keep what they have."""

        def watched(file: File) -> T:
            self._pause(0)
            return work(file)

        with ThreadPoolExecutor(self.options.workers, thread_name_prefix="multitalk-pull") as pool:
            running: list[Future[T]] = [pool.submit(watched, file) for file in files]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and not future.exception() for future in running):
                    self._stop.set()
                    pool.shutdown(cancel_futures=True)
        # A failure itself, not one of those that were stopped because of it.
        errors = [future.exception() for future in running if not future.cancelled()]
        for error in sorted((e for e in errors if e is not None), key=lambda e: isinstance(e, Cancelled)):
            raise error
        return [future.result() for future in running]

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Cancelled("download")


class _WrongContent(Exception):
    """A file is not what it should be."""


def _trust(preset: Preset, file: File) -> str:
    told = next(known for known in preset.files if known.to == file.to)
    return "manifest" if told.sha256 else "first use"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _hub_manners() -> Iterator[None]:
    """Have the hub's library hand on what arrives in small pieces, so that a cut loses little, and keep its warnings.

    They quote signed addresses, as do the lines that its HTTP library logs of each request; what a person has to know
    is told by us.
    """
    from huggingface_hub import constants, file_download  # noqa: F401 - its import sets the level of the logger

    with _MANNERS:
        if not _before:
            _before.update({name: logging.getLogger(name).level for name in _LOUD}, piece=constants.DOWNLOAD_CHUNK_SIZE)
        _before["pulls"] = _before.get("pulls", 0) + 1
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        constants.DOWNLOAD_CHUNK_SIZE = _PIECE
    try:
        yield
    finally:
        with _MANNERS:
            _before["pulls"] -= 1
            if not _before["pulls"]:
                constants.DOWNLOAD_CHUNK_SIZE = _before["piece"]
                for name in _LOUD:
                    logging.getLogger(name).setLevel(_before[name])
                _before.clear()

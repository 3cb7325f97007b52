"""Upload videos to a bucket of a store that speaks S3."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from engine import hookimpl
from engine.buckets import Bucket, Trouble
from engine.cancel import CancelToken, check
from engine.components import Sink
from engine.config import SinkConfig, within
from engine.data import Artifact, Kept, Store
from engine.errors import ConfigError, NotDelivered, RequestError, SinkError
from engine.patience import patiently
from engine.register import Register

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Larger files go up in parts of this size; the digests are over the same parts.
_PART = 8 * 2**20
#: Seven days: no signature holds longer.
_LONGEST_URL = 7 * 24 * 3600
_JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEEP = "undelivered"


@dataclass
class S3Config(SinkConfig):
    """A bucket: sink.bucket, else $S3_BUCKET. Keys come from boto3's own places, never from here."""

    name: str = "s3"
    #: May be left out where the endpoint's host names it.
    bucket: str = "${oc.env:S3_BUCKET,''}"
    region: str | None = "${oc.env:AWS_REGION,null}"
    #: Of a store other than Amazon's.
    endpoint_url: str | None = "${oc.env:BUCKET_ENDPOINT_URL,null}"
    #: Where a request names the bucket: "path", "virtual" (in the host) or "auto" (path at an endpoint_url, else host).
    addressing: str = "auto"
    #: Keys are <prefix>/<job>/<file name>.
    prefix: str = "videos"
    #: Seconds for which the address works, up to seven days; one signed with a session token ends with the token.
    url_seconds: int = field(default=24 * 3600, metadata=within(1, 7 * 24 * 3600))
    #: Address in place of a presigned URL, such as https://cdn.example.com/{key}; {bucket} and {region} work too.
    public_url: str | None = None
    acl: str | None = None
    storage_class: str | None = None
    #: Uploads tried in all. Between two lies a random time of up to `backoff` seconds, doubled with each.
    attempts: int = field(default=5, metadata=within(1, 100))
    backoff: float = field(default=1.0, metadata=within(0, 3600))
    #: Seconds in which no byte moves, after which a connection counts as lost.
    timeout: float = field(default=60.0, metadata=within(0.001, 86_400))
    #: Have the store check SHA-256, and compare it afterwards. False is for stores without S3's additional checksums;
    #: then the size is compared, and the ETag where it is an MD5.
    checksum: bool = True
    #: Ask for the bucket before any work, which needs s3:ListBucket; false only looks for credentials.
    probe: bool = True
    #: Where a video waits that could not be uploaded; None: "undelivered" in `volume`, else in the home folder.
    keep_folder: str | None = None
    volume: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"


class S3Sink:
    """Uploads each video under a key that its job decides, so that a job tried again replaces its own video alone."""

    #: Name of a video whose request named none.
    FILENAME = "talk.mp4"

    def __init__(self, config: S3Config) -> None:
        """Connect to nothing yet; `check` does. Raises ConfigError."""
        _check_config(config)
        self._config = config
        self._bucket = _bucket(config)
        self._shelf = _Shelf(config)
        self._job: str | None = None
        self._store: Store | None = None
        self._private_hosts: Collection[str] = ()
        self._cancel: CancelToken | None = None

    def for_job(self, job: str | None, store: Store | None, private_hosts: Collection[str] = ()) -> S3Sink:
        """Return the sink for one job: its name decides the key, its own `store` takes the place of the configured one.

        Such a store has to lie on the public internet or among `private_hosts`, whenever it is connected to.
        Raises RequestError for a name that cannot be part of a key.
        """
        if job is not None and not _JOB.fullmatch(job):
            hint = "letters, digits, '.', '_' and '-', a letter or digit first, at most 128"
            raise RequestError("the job's name cannot be part of a key", field="request.job", hint=hint)
        sink = copy.copy(self)
        sink._job = job
        if store is not None:
            sink._store, sink._private_hosts = store, private_hosts
            sink._bucket = _bucket(self._config, store, private_hosts)
        return sink

    def until(self, cancel: CancelToken) -> S3Sink:
        """Return the sink whose calls raise Cancelled within a second once `cancel` is set."""
        sink = copy.copy(self)
        sink._cancel = cancel
        return sink

    def check(self, filename: str | None) -> None:
        """Raise SinkError where credentials, bucket, region or a folder to keep videos in are not what `put` needs."""
        if not self._bucket.name:
            hint = "set S3_BUCKET or sink.bucket"
            raise SinkError("no bucket is named", field="sink.bucket", hint=hint, code="s3_bucket_missing")
        self._shelf.folder()
        bucket = self._bucket
        trouble = self._patiently(bucket.probe if self._config.probe else bucket.find_keys)
        if trouble is not None:
            raise SinkError(trouble.what, field=self._field(trouble), hint=trouble.hint, code=trouble.code)

    def rehearse(self) -> None:
        """Put an object of a few bytes beside the videos, read it back and delete it. Raises SinkError."""
        self.check(None)
        name = f"multitalk-doctor-{secrets.token_hex(8)}"
        key = "/".join(filter(None, (self._config.prefix.strip("/"), name)))
        same = self._patiently(lambda: self._bucket.rehearse(key))
        if isinstance(same, Trouble):
            raise SinkError(same.what, field=self._field(same), hint=same.hint, code=same.code)
        if not same:
            raise SinkError("the bucket gave back other bytes than it was given", field="sink", hint="check the store")

    def put(self, artifact: Artifact) -> Kept:
        """Upload the video, remove the local file and return a URL.

        Without a job's name the first digits of its SHA-256 take the place. Raises NotDelivered where the store refuses
        for good; the video then waits in the keep folder for `resume`. Raises SinkError where it is lost.
        """
        try:
            sums = _sums(artifact.path)
            name = self._job or sums.sha256[:16]
            key = "/".join(
                part for part in (self._config.prefix.strip("/"), name, artifact.filename or self.FILENAME) if part
            )
            upload = partial(self._upload, artifact=artifact, sums=sums, key=key)
            address = self._patiently(lambda: self._bucket.attempt(upload))
            if isinstance(address, Trouble):
                raise self._keep(artifact, name, address)
        except OSError as error:
            raise SinkError(f"the video cannot be read back: {error.strerror or error}", field="sink") from error
        _remove(artifact.path)
        self._shelf.clear(name)
        return Kept(address, None, sums.sha256, sums.bytes)

    def waiting(self, job: str) -> Artifact | None:
        """Return the video that waits under this name, None where none does. Raises SinkError."""
        try:
            return self._shelf.find(job, own=self._store is not None)
        except SinkError as error:
            if error.code == "s3_nothing_kept":
                return None
            raise

    def resume(self, job: str) -> Kept:
        """Upload the video that waits under this name, as NotDelivered told it, and clear it away. Raises SinkError.

        A job that came with its own bucket needs it again: `for_job(job, store).resume(job)`.
        """
        artifact = self._shelf.find(job, own=self._store is not None)
        kept = self.for_job(job, self._store, self._private_hosts).put(artifact)
        logger.info("the kept video of job %s is uploaded", job)
        return kept

    def _patiently(self, call: Callable[[], T | Trouble]) -> T | Trouble:
        """Call until it succeeds, the trouble is one that stays, or all attempts are used up. Raises Cancelled."""
        config = self._config
        return patiently(call, attempts=config.attempts, backoff=config.backoff, cancel=self._cancel)

    def _upload(self, client: Any, *, artifact: Artifact, sums: _Sums, key: str) -> str | Trouble:
        from boto3.s3.transfer import TransferConfig

        config, bucket = self._config, self._bucket.name
        extra = {"ContentType": artifact.media_type}
        if config.checksum:
            extra["ChecksumAlgorithm"] = "SHA256"
        if self._store is None:
            # What is right for the configured bucket may be refused by another.
            given = {"ACL": config.acl, "StorageClass": config.storage_class}
            extra |= {name: value for name, value in given.items() if value}
        parts = TransferConfig(
            multipart_threshold=_PART, multipart_chunksize=_PART, preferred_transfer_client="classic"
        )
        # Nobody waits for this thread once the job is withdrawn: it sends no more then.
        ways = {"ExtraArgs": extra, "Config": parts, "Callback": lambda _: check(self._cancel, "keep")}
        client.upload_file(str(artifact.path), bucket, key, **ways)
        asked = {"ChecksumMode": "ENABLED"} if config.checksum else {}
        by, different = _compare(artifact.path, sums, client.head_object(Bucket=bucket, Key=key, **asked))
        if different:
            what = f"what has arrived in bucket {bucket!r} is not what was sent: its {by} differs"
            hint = "try again; sink.checksum=false where the store's ETag is no MD5"
            return Trouble("s3_upload_failed", what, hint, passing=True)
        logger.info("uploaded to bucket %s as %s, %s compared", bucket, key, by)
        if config.public_url and self._store is None:
            return config.public_url.format(bucket=bucket, region=client.meta.region_name, key=quote(key))
        return self._bucket.sign(key, config.url_seconds)

    def _keep(self, artifact: Artifact, name: str, trouble: Trouble) -> SinkError:
        # Passing trouble that did not pass: what failed is the upload, whatever the store last said.
        code = "s3_upload_failed" if trouble.passing else trouble.code
        where = self._field(trouble)
        try:
            path = self._shelf.put(artifact, name, own=self._store is not None)
        except (OSError, SinkError) as error:
            reason = getattr(error, "strerror", None) or error
            what = f"{trouble.what}, and the video could not be kept on this machine: {reason}"
            return SinkError(what, field=where, hint=trouble.hint, code=code)
        logger.error("the video of job %s is not uploaded (%s); it waits in %s", name, code, path)
        return NotDelivered(
            f"{trouble.what}; the video is kept",
            job=name,
            path=str(path),
            field=where,
            hint="; ".join(filter(None, (trouble.hint, f"resume job {name} uploads it without making it again"))),
            code=code,
        )

    def _field(self, trouble: Trouble) -> str:
        if self._store is not None:
            return "request.store"
        return f"sink.{trouble.part}" if trouble.part in ("bucket", "region", "endpoint_url") else "sink"


class _Shelf:
    """Where videos wait that could not be uploaded: <name>.mp4, and <name>.json with what `resume` has to know."""

    def __init__(self, config: S3Config) -> None:
        self._named = config.keep_folder is not None
        places = [config.keep_folder] if config.keep_folder else [f"{config.volume}/{_KEEP}", f"~/multitalk-{_KEEP}"]
        self._folders = [Path(place).expanduser().absolute() for place in places]

    def folder(self) -> Path:
        """Return the first folder that can be written to. Raises SinkError."""
        for folder in self._folders:
            # A volume that is not mounted is not made: what lies in its place would be gone with the container.
            above = next(up for up in (folder, *folder.parents) if up.exists())
            mounted = self._named or above in (folder, folder.parent)
            if mounted and above.is_dir() and os.access(above, os.W_OK | os.X_OK):
                return folder
        raise SinkError(
            "there is no folder to keep a video in whose upload fails",
            field="sink.keep_folder",
            hint="name one that can be written to, on a volume that outlives this machine",
            code="s3_no_keep_folder",
        )

    def put(self, artifact: Artifact, name: str, *, own: bool) -> Path:
        """Take the video and return its new path. Raises OSError and SinkError."""
        folder = self.folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, part = folder / f"{name}.mp4", folder / f".{name}.part"
        try:
            if artifact.path != path:
                shutil.copyfile(artifact.path, part)
                part.replace(path)
            told = {"media_type": artifact.media_type, "seconds": artifact.seconds, "frames": artifact.frames}
            part.write_text(json.dumps(told | {"filename": artifact.filename, "own": own}), "utf-8")
            # Last: a video with its note is whole.
            part.replace(path.with_suffix(".json"))
        finally:
            part.unlink(missing_ok=True)
        return path

    def find(self, name: str, *, own: bool) -> Artifact:
        """Return the video that waits under this name. `own`: its job's bucket is at hand. Raises SinkError."""
        for folder in self._folders if _JOB.fullmatch(name) else ():
            path = folder / f"{name}.mp4"
            try:
                told = json.loads((folder / f"{name}.json").read_text("utf-8"))
                artifact = Artifact(path, told["media_type"], told["seconds"], told["frames"], told["filename"])
                belongs = bool(told["own"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if not path.is_file():
                continue
            if belongs is not own:
                whose = "the job's own bucket" if belongs else "the configured bucket"
                hint = f"resume it with {whose}"
                raise SinkError(f"the kept video belongs into {whose}", field="request.store", hint=hint)
            return artifact
        hint = "make it again"
        raise SinkError("no video is kept for this job", field="request.job", hint=hint, code="s3_nothing_kept")

    def clear(self, name: str) -> None:
        """Remove what waits under this name, if anything does."""
        for folder in self._folders:
            _remove(folder / f"{name}.mp4")
            _remove(folder / f"{name}.json")


def _bucket(config: S3Config, store: Store | None = None, private_hosts: Collection[str] = ()) -> Bucket:
    return Bucket(
        config.bucket if store is None else store.bucket,
        region=config.region or None,
        endpoint_url=config.endpoint_url,
        addressing=config.addressing,
        timeout=config.timeout,
        checksum=config.checksum,
        credentials=None if store is None else store.credentials,
        private_hosts=private_hosts,
    )


def _check_config(config: S3Config) -> None:
    if not 1 <= config.url_seconds <= _LONGEST_URL:
        hint = f"give 1 to {_LONGEST_URL} (seven days), or a sink.public_url"
        raise ConfigError(f"a URL cannot work for {config.url_seconds} seconds", field="sink.url_seconds", hint=hint)
    if config.attempts < 1:
        raise ConfigError(f"{config.attempts} attempts", field="sink.attempts", hint="give 1 or more")
    if not config.backoff >= 0:
        raise ConfigError(f"a backoff of {config.backoff:g} seconds", field="sink.backoff", hint="give 0 or more")
    if not config.timeout > 0:
        raise ConfigError(f"a timeout of {config.timeout:g} seconds", field="sink.timeout", hint="give more than 0")
    styles = ("auto", "path", "virtual")
    if config.addressing not in styles:
        raise ConfigError(f"no addressing {config.addressing!r}", field="sink.addressing", hint=", ".join(styles))
    try:
        (config.public_url or "").format(bucket="", region="", key="")
    except (LookupError, ValueError) as error:
        hint = "such as https://cdn.example.com/{key}; {bucket} and {region} are known too"
        raise ConfigError("the template is not one", field="sink.public_url", hint=hint) from error


@dataclass(frozen=True)
class _Sums:
    """What tells a file from another: its length, its SHA-256, and the one that a store calculates."""

    bytes: int
    sha256: str
    stored: str


def _sums(path: Path) -> _Sums:
    """Read the file once. Raises OSError."""
    whole = hashlib.sha256()
    parts: list[bytes] = []
    with path.open("rb") as file:
        while part := file.read(_PART):
            whole.update(part)
            parts.append(hashlib.sha256(part).digest())
        size = file.tell()
    # A store keeps the digest of the parts' digests for a file that came in parts.
    stored = hashlib.sha256(b"".join(parts)).digest() if size >= _PART else whole.digest()
    return _Sums(size, whole.hexdigest(), base64.b64encode(stored).decode("ascii"))


def _compare(path: Path, sums: _Sums, head: Mapping[str, Any]) -> tuple[str, bool]:
    """Return what was compared ("SHA-256", "ETag" or "size"), and whether it differs from the local file's."""
    if head["ContentLength"] != sums.bytes:
        return "size", True
    told = head.get("ChecksumSHA256")
    if told:
        # Behind a dash stands the number of parts.
        return "SHA-256", told.partition("-")[0] != sums.stored
    etag = re.fullmatch(r'"?([0-9a-f]{32})(?:-\d+)?"?', head.get("ETag", ""))
    # With a key of the customer's or of KMS it is not an MD5.
    if etag and "SSECustomerAlgorithm" not in head and head.get("ServerSideEncryption", "AES256") == "AES256":
        return "ETag", etag[1] != _md5(path, several=sums.bytes >= _PART)
    return "size", False


def _md5(path: Path, *, several: bool) -> str:
    def digest(content: bytes) -> Any:
        return hashlib.md5(content, usedforsecurity=False)

    with path.open("rb") as file:
        if not several:
            return str(digest(file.read()).hexdigest())
        parts = b"".join(digest(part).digest() for part in iter(lambda: file.read(_PART), b""))
        return str(digest(parts).hexdigest())


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # The video is where it should be: no reason to call the job failed.
        logger.warning("%s is uploaded and cannot be removed: %s", path, error.strerror)


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=s3`."""
    register(S3Sink, S3Config)

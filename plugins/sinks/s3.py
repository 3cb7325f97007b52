"""Upload videos to a bucket of an S3-compatible store."""

from __future__ import annotations

import copy
import logging
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from engine import hookimpl
from engine.cancel import check
from engine.components import CancelToken, LiveFolder, Sink
from engine.config import SinkConfig, one_of, within
from engine.config.bounds import check_part
from engine.data import Artifact, Kept, Store
from engine.errors import ConfigError, NotDelivered, RequestError, SinkError
from engine.files.checksums import PART, Sums, compare, read_sums
from engine.files.undelivered import JOB, Shelf, remove
from engine.net.retry import patiently
from engine.net.s3 import DAMAGED, Bucket, Trouble
from engine.net.s3_folder import S3LiveFolder
from engine.plugin.register import Register

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seven days: the longest validity of a signature.
_MAX_URL_SECONDS = 7 * 24 * 3600
_KEEP = "undelivered"


@dataclass
class S3Config(SinkConfig):
    """A bucket: sink.bucket, else $S3_BUCKET. boto3 finds the keys in its usual places; the config has none."""

    name: str = "s3"
    #: The bucket; optional if the endpoint's host name contains it.
    bucket: str = "${oc.env:S3_BUCKET,''}"
    #: Its region; null: boto3's own configuration.
    region: str | None = "${oc.env:AWS_REGION,null}"
    #: Endpoint of a store other than Amazon's.
    endpoint_url: str | None = "${oc.env:BUCKET_ENDPOINT_URL,null}"
    #: Where requests name the bucket: "path", "virtual" (host name) or "auto" (path with an endpoint_url, else host).
    addressing: str = field(default="auto", metadata=one_of("auto", "path", "virtual"))
    #: Keys are <prefix>/<job>/<file name>.
    prefix: str = "videos"
    #: Seconds until a presigned URL expires, at most seven days; with a session token it expires with the token.
    url_seconds: int = field(default=24 * 3600, metadata=within(1, 7 * 24 * 3600))
    #: Replaces the presigned URL, such as https://cdn.example.com/{key}; {bucket} and {region} work too.
    public_url: str | None = None
    #: Access control list of the object; null: the bucket's default.
    acl: str | None = None
    #: Storage class of the object; null: the bucket's default.
    storage_class: str | None = None
    #: Number of upload attempts.
    attempts: int = field(default=5, metadata=within(1, 100))
    #: Maximum seconds between two attempts, doubled each time; the wait is a random part of it.
    backoff: float = field(default=1.0, metadata=within(0, 3600))
    #: Seconds without data after which a connection counts as lost.
    timeout: float = field(default=60.0, metadata=within(0.001, 86_400))
    #: Have the store check SHA-256, and compare it afterwards. False: for stores without S3's additional checksums;
    #: then size and ETag (if it is an MD5) are compared. If a store refuses checksums, the upload is retried without.
    checksum: bool = True
    #: What is compared after an upload: "content" (SHA-256, else the ETag if it is an MD5) or only "size", for stores
    #: whose ETag looks like an MD5 but is not one.
    compare: str = field(default="content", metadata=one_of("content", "size"))
    #: Check access to the bucket before any work, which needs s3:ListBucket; false: only check that keys exist.
    probe: bool = True
    #: Folder for videos that could not be uploaded; null: "undelivered" in `volume`, else in the home folder.
    keep_folder: str | None = None
    #: The volume of the weights; its folder "undelivered" keeps videos that could not be uploaded.
    volume: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"


class S3Sink:
    """Uploads each video under a key made from its job, so that a repeated job replaces only its own video."""

    #: Name of a video whose request has no file name.
    FILENAME = "talk.mp4"

    def __init__(self, config: S3Config) -> None:
        """Open no connection yet; `check` does. Raises ConfigError."""
        _check_config(config)
        self._config = config
        self._bucket = _bucket(config)
        self._shelf = _shelf(config)
        self._job: str | None = None
        self._store: Store | None = None
        self._private_hosts: Collection[str] = ()
        self._cancel: CancelToken | None = None

    def for_job(self, job: str | None, store: Store | None, private_hosts: Collection[str] = ()) -> S3Sink:
        """Return the sink for one job: its name is part of the key, and its own `store` replaces the configured one.

        Such a store must be on the public internet or among `private_hosts`; every connection checks that.
        Raises RequestError for a name that cannot be part of a key.
        """
        if job is not None and not JOB.fullmatch(job):
            hint = "use letters, digits, '.', '_' and '-', a letter or digit first, at most 128 characters"
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
        """Raise SinkError if credentials, bucket, region or the folder for kept videos do not allow `put` to work."""
        if not self._bucket.name:
            hint = "set S3_BUCKET or sink.bucket"
            raise SinkError("no bucket is set", field="sink.bucket", hint=hint, code="s3_bucket_missing")
        self._shelf.folder()
        bucket = self._bucket
        trouble = self._patiently(bucket.probe if self._config.probe else bucket.find_keys)
        if trouble is not None:
            raise SinkError(trouble.what, field=self._field(trouble), hint=trouble.hint, code=trouble.code)

    def rehearse(self) -> None:
        """Write a small object next to the videos, read it back and delete it. Raises SinkError."""
        self.check(None)
        name = f"multitalk-doctor-{secrets.token_hex(8)}"
        key = "/".join(filter(None, (self._config.prefix.strip("/"), name)))
        same = self._patiently(lambda: self._leniently(lambda bucket: bucket.rehearse(key)))
        if isinstance(same, Trouble):
            raise SinkError(same.what, field=self._field(same), hint=same.hint, code=same.code)
        if not same:
            raise SinkError(
                "the bucket returned other bytes than were written to it", field="sink", hint="check the store"
            )

    def put(self, artifact: Artifact) -> Kept:
        """Upload the video, remove the local file and return a URL.

        A request without a job is named by the first digits of the video's SHA-256. Raises NotDelivered if the upload
        finally fails; the video then stays in the keep folder for `resume`. Raises SinkError if it could not be kept.
        """
        try:
            sums = read_sums(artifact.path)
            name = self._job or sums.sha256[:16]
            key = "/".join(
                part for part in (self._config.prefix.strip("/"), name, artifact.filename or self.FILENAME) if part
            )
            upload = _Upload(self, artifact, sums, key)
            address = self._patiently(upload)
            if isinstance(address, Trouble):
                raise self._keep(artifact, sums, name, address)
        except OSError as error:
            raise SinkError(f"the video cannot be read back: {error.strerror or error}", field="sink") from error
        self._shelf.clear(name)
        remove(artifact.path)
        return Kept(address, None, sums.sha256, sums.size, upload.warnings)

    def live(self, filename: str | None) -> LiveFolder:
        """Return the keys <prefix>/<job>/live/... of the bucket; the playlist names its parts by full URLs."""
        name = self._job or f"live-{secrets.token_hex(8)}"
        prefix = "/".join(part for part in (self._config.prefix.strip("/"), name, "live") if part)
        return S3LiveFolder(
            prefix, write=self._write_live, url=self._live_url, remove=self._remove_live, cancel=self._cancel
        )

    def waiting(self, job: str) -> Artifact | None:
        """Return the kept video of this job, or None. Raises SinkError."""
        try:
            return self._shelf.find(job, own=self._store is not None).artifact
        except SinkError as error:
            if error.code == "s3_nothing_kept":
                return None
            raise

    def resume(self, job: str) -> Kept:
        """Upload the kept video of this job (see NotDelivered) and remove the local file. Raises SinkError.

        A video that has changed since it was kept is neither uploaded nor removed: `s3_kept_damaged`. A job with its
        own bucket needs it again: `for_job(job, store).resume(job)`.
        """
        waiting = self._shelf.find(job, own=self._store is not None)
        waiting.check()
        kept = self.for_job(job, self._store, self._private_hosts).put(waiting.artifact)
        logger.info("uploaded the kept video of job %s", job)
        return kept

    def _write_live(self, key: str, content: bytes, headers: dict[str, str], cancel: CancelToken | None) -> None:
        config = self._config
        if config.acl and self._store is None:
            headers = {**headers, "ACL": config.acl}
        call = partial(self._leniently, lambda bucket: bucket.write(key, content, headers))
        self._check_live(patiently(call, attempts=config.attempts, backoff=config.backoff, cancel=cancel))

    def _live_url(self, key: str) -> str:
        return self._check_live(self._address(key))

    def _remove_live(self, keys: list[str]) -> None:
        self._check_live(self._bucket.remove(keys))

    def _check_live(self, answer: T | Trouble) -> T:
        if isinstance(answer, Trouble):
            raise SinkError(answer.what, field=self._field(answer), hint=answer.hint, code=answer.code)
        return answer

    def _address(self, key: str) -> str | Trouble:
        """Return the URL of an object; why it cannot be signed."""
        config, name = self._config, self._bucket.name
        if (template := config.public_url) and self._store is None:
            return self._bucket.attempt(
                lambda client: template.format(bucket=name, region=client.meta.region_name, key=quote(key))
            )
        return self._bucket.sign(key, config.url_seconds)

    def _patiently(self, call: Callable[[], T | Trouble]) -> T | Trouble:
        """Call until it succeeds, fails for good, or all attempts are used up. Raises Cancelled."""
        config = self._config
        return patiently(call, attempts=config.attempts, backoff=config.backoff, cancel=self._cancel)

    def _leniently(self, call: Callable[[Bucket], T | Trouble]) -> T | Trouble:
        """Call with a bucket that sends additional checksums; if the store refuses them, call once more without."""
        bucket = self._bucket
        if not bucket.refuses_checksums:
            answer = call(bucket)
            if not isinstance(answer, Trouble) or not answer.without:
                return answer
            plain = call(bucket.plain)
            if not isinstance(plain, Trouble):
                bucket.without_checksums(answer.without)
            return plain
        return call(bucket.plain)

    def _keep(self, artifact: Artifact, sums: Sums, name: str, trouble: Trouble) -> SinkError:
        # A temporary failure that lasted through all attempts: the upload failed, whatever the last answer was.
        code = "s3_upload_failed" if trouble.passing else trouble.code
        where = self._field(trouble)
        try:
            own = self._store is not None
            path = self._shelf.put(artifact, name, own=own, sha256=sums.sha256, size=sums.size)
        except (OSError, SinkError) as error:
            reason = getattr(error, "strerror", None) or error
            what = f"{trouble.what}, and the video could not be kept on this machine: {reason}"
            return SinkError(what, field=where, hint=trouble.hint, code=code)
        logger.error("the video of job %s could not be uploaded (%s); it is kept in %s", name, code, path)
        return NotDelivered(
            f"{trouble.what}; the video is kept",
            job=name,
            path=str(path),
            field=where,
            hint="; ".join(filter(None, (trouble.hint, f"resume job {name} to upload it without generating it again"))),
            code=code,
        )

    def _field(self, trouble: Trouble) -> str:
        if self._store is not None:
            return "request.store"
        return f"sink.{trouble.part}" if trouble.part in ("bucket", "region", "endpoint_url") else "sink"


class _Upload:
    """The upload of one video; called for each attempt.

    Stores without additional checksums refuse them with many different errors. So each error that checksums could
    cause is followed by one upload without them. If that succeeds, this process sends none to that store again.
    """

    def __init__(self, sink: S3Sink, artifact: Artifact, sums: Sums, key: str) -> None:
        self._sink, self._artifact, self._sums, self._key = sink, artifact, sums, key
        self._bucket = sink._bucket
        #: Number of damage reports; the first is taken for damage in transit.
        self._damaged = 0
        self._attempts = 0
        self._without = self._bucket.refuses_checksums if sink._config.checksum else ""
        self.warnings: tuple[str, ...] = ()

    def __call__(self) -> str | Trouble:
        """Upload the video and compare the stored object; return its address, or why it failed."""
        self._attempts += 1
        if self._without or not self._sink._config.checksum:
            return self._go(self._without)
        answer = self._go("")
        if not isinstance(answer, Trouble) or not answer.without:
            return answer
        self._damaged += answer.without in DAMAGED
        if self._damaged == 1 and self._attempts < self._sink._config.attempts:
            return answer
        logger.warning("%s; trying once more without additional checksums", answer.what)
        plain = self._go(answer.without)
        if not isinstance(plain, Trouble):
            self._bucket.without_checksums(answer.without)
        elif plain.passing and plain.what != answer.what:
            # Another failure without checksums: the next attempts need not send them again.
            self._without = answer.without
        return plain

    def _go(self, without: str) -> str | Trouble:
        bucket = self._bucket.plain if without else self._bucket
        return bucket.attempt(partial(self._send, without=without))

    def _send(self, client: Any, *, without: str) -> str | Trouble:
        from boto3.s3.transfer import TransferConfig

        config, bucket, path = self._sink._config, self._bucket.name, self._artifact.path
        checksum = config.checksum and not without
        extra = {"ContentType": self._artifact.media_type}
        if checksum:
            extra["ChecksumAlgorithm"] = "SHA256"
        own = self._sink._store is not None
        if not own:
            # Another store may refuse what suits the configured bucket.
            settings = {"ACL": config.acl, "StorageClass": config.storage_class}
            extra |= {name: value for name, value in settings.items() if value}
        parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, preferred_transfer_client="classic")
        # If the job is cancelled, nothing waits for this thread: the callback stops it.
        options = {"ExtraArgs": extra, "Config": parts, "Callback": lambda _: check(self._sink._cancel, "keep")}
        client.upload_file(str(path), bucket, self._key, **options)
        head_options = {"ChecksumMode": "ENABLED"} if checksum else {}
        head = client.head_object(Bucket=bucket, Key=self._key, **head_options)
        by, different = compare(path, self._sums, head, size_alone=config.compare == "size")
        if different:
            what = f"the object in bucket {bucket!r} is not what was sent: its {by} differs"
            hint = (
                "try again, or set sink.compare=size if the store's ETag is not an MD5" if by == "ETag" else "try again"
            )
            return Trouble("s3_upload_failed", what, hint, passing=True)
        logger.info("uploaded to bucket %s as %s, %s compared", bucket, self._key, by)
        if without:
            warning = (
                f"the store refuses additional checksums ({without}): the video was uploaded without them and compared "
                f"by its {by}; sink.checksum=false skips that attempt"
            )
            self.warnings = (warning,)
        return self._sink._address(self._key)


def _shelf(config: S3Config) -> Shelf:
    places = [config.keep_folder] if config.keep_folder else [f"{config.volume}/{_KEEP}", f"~/multitalk-{_KEEP}"]
    folders = [Path(place).expanduser().absolute() for place in places]
    return Shelf(folders, named=config.keep_folder is not None)


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
    if not 1 <= config.url_seconds <= _MAX_URL_SECONDS:
        hint = f"give 1 to {_MAX_URL_SECONDS} (seven days), or a sink.public_url"
        raise ConfigError(
            f"a presigned URL cannot be valid for {config.url_seconds} seconds", field="sink.url_seconds", hint=hint
        )
    check_part(config, "sink")
    try:
        (config.public_url or "").format(bucket="", region="", key="")
    except (LookupError, ValueError) as error:
        hint = "such as https://cdn.example.com/{key}; {bucket} and {region} work too"
        raise ConfigError("the URL template is invalid", field="sink.public_url", hint=hint) from error


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=s3`."""
    register(S3Sink, S3Config)

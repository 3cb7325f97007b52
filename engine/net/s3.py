"""A bucket of an S3-compatible store: its place, its credentials, and what the store's errors mean."""

from __future__ import annotations

import copy
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

from engine.data import Credentials
from engine.errors import MissingExtra, RequestError
from engine.net.guard import Resolver, judge, look_up, parse_url
from engine.net.s3_client import new_session, pin

T = TypeVar("T")

#: Attempts that botocore makes for each request, milliseconds apart. The caller handles longer outages.
_TRIES = 3
#: Maximum seconds to connect.
_CONNECT = 10.0
#: RunPod's names for the keys of a bucket; they take precedence over boto3's own sources.
_KEYS = ("BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY")
_AMAZON = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:[.-](?P<region>[a-z]{2}(?:-[a-z]+)+-\d+))?\.amazonaws\.com(?:\.cn)?")
#: Form of a store's error codes and regions; anything else is not repeated.
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
#: In addition to all 401 and 403.
_REFUSED = ("InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch")
#: Of these, codes that can only concern the keys, not a request that the store does not understand.
_SURE = ("InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "RequestTimeTooSkewed")
_MISSING = ("NoSuchBucket", "InvalidBucketName", "404")
_ELSEWHERE = ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301")
#: Bytes were lost or changed in transit; or the store mistook the frames of a trailing checksum for part of the file.
DAMAGED = ("BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch")
#: Damaged bytes, or the store is overloaded.
_PASSING = (*DAMAGED, "OperationAborted", "RequestTimeout", "SlowDown", "429")
#: Permanent failures in spite of a 5xx status.
_NEVER = (501, 505)

_ASK = "the keys need s3:PutObject, s3:GetObject and s3:ListBucket on it"
_HINTS = {
    "InvalidAccessKeyId": "the store does not know the access key: check it and the endpoint",
    "SignatureDoesNotMatch": "the secret key does not match the access key: check it",
    "InvalidToken": "the session token is not valid: get new credentials",
    "RequestTimeTooSkewed": "this machine's clock is wrong: correct it",
    "AccessControlListNotSupported": "the bucket has access control lists turned off: do not set acl",
    "InvalidStorageClass": "choose a storage class that the store supports",
}

#: Errors of an upload, apart from credentials, bucket and region, that additional checksums cannot cause.
_PLAIN = (
    *("AccessControlListNotSupported", "EntityTooLarge", "InvalidStorageClass", "OperationAborted", "QuotaExceeded"),
    *("RequestTimeout", "SlowDown"),
)
_WRITES = ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject", "GetObject")
#: Stores that have rejected additional checksums in this process, with their error code. By endpoint and bucket, since
#: the rules of one bucket may be the reason.
_WITHOUT: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class Trouble:
    """Why a request to the store failed. It contains no URL, no query and no text of the store."""

    code: str
    what: str
    hint: str = ""
    #: The setting that it concerns: "bucket", "region", "endpoint_url", "credentials", or "".
    part: str = ""
    #: Whether it is temporary, so that another attempt may succeed.
    passing: bool = False
    #: The store's error code if missing support for additional checksums may be the reason, else "".
    without: str = ""


class Bucket:
    """One bucket, used through boto3 with the job's keys, RunPod's BUCKET_* or those that boto3 finds, in this order.

    It shows no key: boto3's texts may contain URLs with queries, so its errors are translated into a Trouble here.
    """

    def __init__(
        self,
        name: str,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        addressing: str = "auto",
        timeout: float = 60.0,
        checksum: bool = True,
        credentials: Credentials | None = None,
        private_hosts: Collection[str] = (),
        resolve: Resolver = look_up,
    ) -> None:
        """Connect to nothing yet. If the host name of `endpoint_url` contains the bucket, `name` may be "".

        `credentials` are a job's own; their endpoint and region replace the other two arguments. Nothing that is
        configured on this machine is used with them. Their store must be on the public internet or in `private_hosts`.
        """
        if credentials is not None:
            region, endpoint_url = credentials.region, credentials.endpoint
        self.name, self.endpoint_url, host_region = _place(name, endpoint_url or None)
        # A job's own keys do not follow this machine's AWS_DEFAULT_REGION either.
        self.region = region or host_region or (None if credentials is None else "us-east-1")
        self._addressing = addressing
        self._timeout = timeout
        self._checksum = checksum
        self._credentials = credentials
        self._private_hosts = private_hosts
        self._resolve = resolve

    @property
    def refuses_checksums(self) -> str:
        """The error code with which this store rejected additional checksums in this process; "" if it did not."""
        return _WITHOUT.get(self._store, "")

    @cached_property
    def plain(self) -> Bucket:
        """The same bucket, used without additional checksums."""
        bucket = copy.copy(self)
        bucket.__dict__.pop("_client", None)
        bucket._checksum = False
        return bucket

    def without_checksums(self, why: str) -> None:
        """Remember in this process that the store rejects additional checksums, with its error code `why`."""
        _WITHOUT[self._store] = why

    @property
    def _store(self) -> tuple[str, str]:
        return self.endpoint_url or "", self.name

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"

    def attempt(self, call: Callable[[Any], T]) -> T | Trouble:
        """Return the result of `call` with a boto3 client, or why it failed.

        Raises MissingExtra if boto3 is not installed; errors that are not boto3's are not caught.
        """
        if find_spec("boto3") is None:
            raise MissingExtra("sink=s3", "boto3", "s3")
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call(self._client)
        except _NoEndpointError:
            return Trouble(
                "s3_unreachable", "the endpoint is not a plain URL", "such as https://s3.example.com", "endpoint_url"
            )
        except RequestError as error:
            return Trouble(error.code, error.what, error.hint, "endpoint_url")
        except (Boto3Error, BotoCoreError, ClientError) as error:
            return self._explain(error)

    def probe(self) -> Trouble | None:
        """Ask the store about the bucket; return why it cannot be used, None if it can."""
        answer = self.attempt(lambda client: client.head_bucket(Bucket=self.name))
        if not isinstance(answer, Trouble):
            region = _region(answer)
            # boto3 follows to the right region by itself; a presigned URL does not.
            return None if region in (None, self.region) or self.region == "auto" else self._elsewhere(region)
        if answer.code not in ("s3_credentials_refused", "s3_refused"):
            return answer
        # The answer to a HEAD has no body; the answer to a GET distinguishes an expired token from an unknown key.
        again = self.attempt(lambda client: client.list_objects_v2(Bucket=self.name, MaxKeys=1))
        return again if isinstance(again, Trouble) else answer

    def find_keys(self) -> Trouble | None:
        """Check credentials, and the address of a job's own endpoint, without asking the store; return what fails."""
        return self.attempt(self._judge)

    def sign(self, key: str, seconds: int) -> str | Trouble:
        """Return a URL with which anybody can download the object `key` for `seconds`. The store is not asked."""
        place = {"Bucket": self.name, "Key": key}
        return self.attempt(lambda client: str(client.generate_presigned_url("get_object", place, ExpiresIn=seconds)))

    def write(self, key: str, content: bytes, headers: Mapping[str, str]) -> bool | Trouble:
        """Store a small object in one request; `headers` are boto3's, such as ContentType."""
        return self.attempt(lambda client: bool(client.put_object(Bucket=self.name, Key=key, Body=content, **headers)))

    def remove(self, keys: Iterable[str]) -> bool | Trouble:
        """Delete objects, one by one: not every store can delete several in one request."""
        return self.attempt(lambda client: all(client.delete_object(Bucket=self.name, Key=key) for key in keys))

    def rehearse(self, key: str) -> bool | Trouble:
        """Put a few bytes under `key`, read them back and delete them; return whether they were the same."""
        place, body = {"Bucket": self.name, "Key": key}, b"multitalk"

        def write_and_read(client: Any) -> bool:
            client.put_object(**place, Body=body)
            try:
                content: bytes = client.get_object(**place)["Body"].read()
            finally:
                client.delete_object(**place)
            return content == body

        return self.attempt(write_and_read)

    def _judge(self, client: Any) -> None:
        if self._credentials is not None:
            url, deadline = parse_url(client.meta.endpoint_url), time.monotonic() + _CONNECT
            judge(url, deadline=deadline, private_hosts=self._private_hosts, resolve=self._resolve)

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        # At DEBUG they log what they sign and send: session tokens, and the queries of presigned URLs.
        for name in ("botocore.auth", "botocore.endpoint"):
            logging.getLogger(name).setLevel(logging.INFO)
        if self._credentials is not None and self.endpoint_url:
            parse_url(self.endpoint_url)
        parts = _split(self.endpoint_url)
        if parts.username or parts.password or parts.query:
            # boto3 would log it.
            raise _NoEndpointError
        session = new_session(self.region, **self._keys())
        if session.get_credentials() is None:
            raise NoCredentialsError
        calculated = "when_supported" if self._checksum else "when_required"
        config = Config(
            connect_timeout=min(self._timeout, _CONNECT),
            read_timeout=self._timeout,
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            s3={"addressing_style": self._addressing},
            # Older signatures are not accepted everywhere, and boto3 would still presign with them.
            signature_version="s3v4",
            request_checksum_calculation=calculated,
            response_checksum_validation=calculated,
            ignore_configured_endpoint_urls=self._credentials is not None,
        )
        try:
            client = session.client("s3", endpoint_url=self.endpoint_url, config=config)
            if self._addressing == "auto" and ".amazonaws." in client.meta.endpoint_url:
                # Amazon's host must name the region; boto3's signed URLs do so only in this style.
                regional = config.merge(Config(s3={"addressing_style": "virtual"}))
                client = session.client("s3", endpoint_url=self.endpoint_url, config=regional)
        except ValueError as error:
            if isinstance(error, BotoCoreError):
                raise
            raise _NoEndpointError from None
        if self._credentials is not None:
            timeout = min(self._timeout, _CONNECT)
            pin(client, private_hosts=self._private_hosts, timeout=timeout, resolve=self._resolve)
        self.region = client.meta.region_name
        return client

    def _keys(self) -> dict[str, str | None]:
        from botocore.exceptions import PartialCredentialsError

        own = self._credentials
        if own is not None:
            access, secret, token = own.access_key, own.secret_key, own.session_token
            missing = [name for name, key in (("access key", access), ("secret key", secret)) if not key]
        else:
            access, secret = (os.environ.get(name, "") for name in _KEYS)
            token = None
            missing = [name for name in _KEYS if not os.environ.get(name)]
            if len(missing) == len(_KEYS):
                return {}
        if missing:
            raise PartialCredentialsError(provider="the bucket", cred_var=" and ".join(missing))
        return {"aws_access_key_id": access, "aws_secret_access_key": secret, "aws_session_token": token}

    def _explain(self, error: Exception) -> Trouble:
        from boto3.exceptions import Boto3Error
        from botocore import exceptions as botocore

        if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
            # The transfer manager's error quotes the path and the store's own text.
            error = error.__context__
        if isinstance(error, botocore.ClientError):
            return self._refusal(error)
        if isinstance(error, botocore.ConnectionError | botocore.HTTPClientError):
            why = "does not answer in time" if "Timeout" in type(error).__name__ else "cannot be reached"
            where = f"the store{self._host()} {why} ({type(error).__name__})"
            return Trouble("s3_unreachable", where, "check endpoint and network", "endpoint_url", passing=True)
        if isinstance(error, botocore.PartialCredentialsError):
            what = f"the credentials for bucket {self.name!r} lack {error.kwargs['cred_var']}"
            return Trouble("s3_no_credentials", what, "set both keys", "credentials")
        if isinstance(error, botocore.ParamValidationError):
            return Trouble("s3_bucket_missing", f"{self.name!r} is not a valid bucket name", "check it", "bucket")
        if isinstance(error, botocore.InvalidRegionError):
            return Trouble("s3_wrong_region", "the region's name is invalid", "such as eu-west-1", "region")
        detail = "" if isinstance(error, botocore.NoCredentialsError) else f" ({type(error).__name__})"
        chain = (
            botocore.NoCredentialsError,
            botocore.CredentialRetrievalError,
            botocore.ProfileNotFound,
            botocore.SSOError,
            botocore.TokenRetrievalError,
        )
        if isinstance(error, chain):
            hint = f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {' and '.join(_KEYS)}"
            what = f"there are no credentials for bucket {self.name!r}{detail}"
            return Trouble("s3_no_credentials", what, hint, "credentials")
        return Trouble(
            "s3_refused", f"boto3 cannot use bucket {self.name!r}{detail}", "check boto3's own configuration"
        )

    def _refusal(self, error: Any) -> Trouble:
        response = error.response
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        region = _region(response)
        reason = code if _WORD.fullmatch(code) else f"status {status}"
        place = f"bucket {self.name!r}"
        if code in _ELSEWHERE or (status in (301, 400) and region not in (None, self.region)):
            return self._elsewhere(region)
        if code in _EXPIRED:
            what = f"the session token for {place} has expired"
            return Trouble("s3_token_expired", what, "get new credentials", "credentials")
        if code in _MISSING and error.operation_name != "HeadObject":
            what = f"there is no {place}{self._host(' at')}"
            return Trouble("s3_bucket_missing", what, "check its name and the endpoint, or create it", "bucket")
        # Stores that do not support the headers or the trailer of additional checksums report many different errors: a
        # bad argument, a missing length, an incomplete body, a wrong signature.
        suspect = self._checksum and error.operation_name in _WRITES and code not in _SURE and code not in _PLAIN
        without = reason if suspect and (400 <= status < 500 or status in _NEVER) and status not in (404, 429) else ""
        if code in _REFUSED or status in (401, 403):
            what = f"{place} rejects the credentials ({reason})"
            hint = _HINTS.get(code, _ASK)
            return Trouble("s3_credentials_refused", what, hint, "credentials", without=without)
        if code in _PASSING or (status >= 500 and status not in _NEVER) or error.operation_name == "HeadObject":
            what = f"the store{self._host()} answers {reason}"
            return Trouble("s3_unreachable", what, "try again later", "endpoint_url", passing=True, without=without)
        return Trouble("s3_refused", f"{place} rejects the request ({reason})", _HINTS.get(code, ""), without=without)

    def _elsewhere(self, region: str | None) -> Trouble:
        configured = "" if self.region is None else f", not {self.region}"
        what = f"bucket {self.name!r} is in " + (f"{region}{configured}" if region else "another region")
        return Trouble("s3_wrong_region", what, f"set the region {region}" if region else "set its region", "region")

    def _host(self, word: str = "") -> str:
        # Only the host: user, path and query of a URL must not be logged.
        host = _split(self.endpoint_url).hostname
        return f"{word} {host}" if host else ""


class _NoEndpointError(Exception):
    """The endpoint is not a URL, or one with credentials or a query; boto3's own text would repeat it."""


def _place(name: str, endpoint_url: str | None) -> tuple[str, str | None, str | None]:
    """Return bucket, endpoint without the bucket in its host, and the region if an Amazon host name contains it.

    The host of RunPod's BUCKET_ENDPOINT_URL contains the bucket; boto3 would add it a second time.
    """
    parts = _split(endpoint_url)
    host = parts.hostname or ""
    amazon = _AMAZON.fullmatch(host)
    if amazon and not name:
        name = amazon["bucket"] or ""
    # A bucket "storage" is not the one in storage.googleapis.com: a store's host has at least three labels.
    if name and host.startswith(f"{name}.") and host.removeprefix(f"{name}.").count(".") >= 2:
        bare = parts.netloc[parts.netloc.lower().rindex(host) + len(name) + 1 :]
        endpoint_url = urlunsplit((parts.scheme, bare, parts.path, "", ""))
    return name, endpoint_url, amazon["region"] if amazon else None


def _split(url: str | None) -> SplitResult:
    try:
        return urlsplit(url or "")
    except ValueError:
        return urlsplit("")


def _region(response: Any) -> str | None:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region")
    return region if region and _WORD.fullmatch(region) else None

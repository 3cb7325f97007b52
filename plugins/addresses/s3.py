"""s3://bucket/key, at Amazon or in an S3-compatible store."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from engine import Access, hookimpl
from engine.cancel import apart
from engine.errors import MissingExtra, RequestError
from engine.net.download import Answer, ask, deadline_of
from engine.net.guard import Resolver, look_up, parse_url
from engine.net.s3 import Bucket, Trouble

_HINT = "write s3://bucket/folder/file"
#: Maximum bytes of a key in the S3 protocol.
_MAX_KEY = 1024
#: Extra seconds for which a signed URL is valid, because clocks differ.
_GRACE = 300
#: Bytes of an error response that are searched for its reason.
_MAX_ERROR = 4096
#: Statuses with which a store reports that the bucket is in another region.
_ELSEWHERE = (301, 307, 400)

#: S3 error code -> (what is wrong, hint).
_ERRORS = {
    "NoSuchKey": ("the bucket {bucket!r} has no file with this key", "check the key"),
    "NoSuchBucket": ("there is no bucket {bucket!r}", "check bucket and endpoint"),
    "AccessDenied": ("the credentials may not read from the bucket {bucket!r}", "allow s3:GetObject"),
    "InvalidAccessKeyId": ("the store does not know the access key", "check key and endpoint"),
    "SignatureDoesNotMatch": ("the secret key does not match the access key", "check the secret key"),
    "ExpiredToken": ("the session token has expired", "get new credentials"),
    "InvalidToken": ("the session token is invalid", "get new credentials"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock"),
    "InvalidObjectState": ("the file is in an archive storage class", "restore it first"),
}


def fetch_object(address: str, access: Access, into: Path, *, resolve: Resolver = look_up) -> Path:
    """Download an object to a new file in `into`, with the job's credentials or with this machine's.

    This machine's credentials open only the buckets that `access` lists. boto3 signs a URL, and the engine's own
    download fetches it. So an endpoint that a job names must have a public address, and the limits of `access` apply
    to the body. Raises RequestError, and then leaves no file.
    """
    bucket, key = _split(address)
    own = access.credentials
    if own is None and bucket not in access.buckets:
        raise RequestError(
            f"the bucket {bucket!r} may not be read with this machine's keys",
            hint="send your own keys for it (s3Config), or ask the operator to add it to access.buckets",
            code="s3_bucket_refused",
        )
    deadline = deadline_of(access)
    region = access.region if own is None else own.region
    for _ in range(2):
        url = parse_url(_signed(bucket, key, access, region))
        with ask(url, access, deadline=deadline, resolve=resolve) as answer:
            if answer.status == 200:
                return answer.save(access.max_bytes, into)
            code, other_region = _read_error(answer)
            error = _error(answer, bucket, code)
        if answer.status not in _ELSEWHERE or other_region in (None, region):
            break
        # A signature is valid for one region; the answer names the right one.
        region = other_region
    raise error


def _split(address: str) -> tuple[str, str]:
    """Return bucket and key; the key is used literally, including percent signs and question marks."""
    bucket, _, key = address.partition("://")[2].partition("/")
    if "@" in bucket:
        raise RequestError(
            "the address contains a user name or a password",
            hint=f"{_HINT} and send keys as the job's credentials",
            code="credentials_in_url",
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise RequestError("the address has no valid bucket name", hint=_HINT, code="address_invalid")
    try:
        length = len(key.encode())
    except UnicodeError:
        length = 0
    if not 0 < length <= _MAX_KEY or key.endswith("/"):
        raise RequestError("the address names no file in the bucket", hint=_HINT, code="address_invalid")
    return bucket, key


def _signed(bucket: str, key: str, access: Access, region: str | None) -> str:
    """Let boto3 sign a GET of the object. Raises RequestError."""
    own = access.credentials
    place = Bucket(
        bucket,
        region=region,
        endpoint_url=access.endpoint_url,
        credentials=None if own is None else replace(own, region=region),
    )
    try:
        # boto3 may ask for keys on the network.
        signed = apart(lambda: place.sign(key, int(access.timeout) + _GRACE), access.cancel, "read")
    except MissingExtra as error:
        raise RequestError(
            "s3:// addresses need the package 'boto3', which is not installed", hint=error.hint, code="s3_unavailable"
        ) from None
    if isinstance(signed, Trouble):
        raise RequestError(signed.what, hint=signed.hint, code=signed.code)
    return signed


def _read_error(answer: Answer) -> tuple[str, str | None]:
    """Return the error code of the store's answer, and the region that it names."""
    text = answer.beginning(_MAX_ERROR).decode("utf-8", "replace")
    code = re.search(r"<Code>([A-Za-z]{1,64})</Code>", text)
    region_tag = re.search(r"<Region>([^<]*)</Region>", text)
    region = answer.header("x-amz-bucket-region") or (region_tag[1] if region_tag else "")
    return code[1] if code else "", region if re.fullmatch(r"[a-z0-9-]{2,32}", region) else None


def _error(answer: Answer, bucket: str, code: str) -> RequestError:
    if code not in _ERRORS:
        return answer.refused()
    what, hint = _ERRORS[code]
    if answer.status == 404:
        return RequestError(what.format(bucket=bucket), hint=hint, code="s3_not_found")
    return RequestError(what.format(bucket=bucket), hint=hint, code="s3_denied")


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Download an object of a store to a file in `into`."""
    return fetch_object(address, access, into) if scheme == "s3" else None

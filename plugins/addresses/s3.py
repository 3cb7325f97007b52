"""s3://bucket/key, in Amazon's store or one that speaks its protocol."""

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
#: Bytes of a key, by the protocol.
_LONGEST = 1024
#: Seconds beyond the time allowed that a signed URL stays good: clocks differ.
_GRACE = 300
#: Bytes of a refusal that are looked through for its reason.
_REFUSAL = 4096
#: Statuses by which a store says that the bucket lies in another region.
_ELSEWHERE = (301, 307, 400)

#: The protocol's word -> (what is wrong, what would work).
_REFUSALS = {
    "NoSuchKey": ("the bucket {bucket!r} holds no file of that name", "check the key"),
    "NoSuchBucket": ("there is no bucket {bucket!r}", "check bucket and endpoint"),
    "AccessDenied": ("the credentials may not read from the bucket {bucket!r}", "allow s3:GetObject"),
    "InvalidAccessKeyId": ("the store does not know the access key", "check key and endpoint"),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", "check the secret key"),
    "ExpiredToken": ("the session token has run out", "get new credentials"),
    "InvalidToken": ("the session token is not valid", "get new credentials"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set the clock"),
    "InvalidObjectState": ("the file lies in an archive class", "restore it first"),
}


def fetch_object(address: str, access: Access, into: Path, *, resolve: Resolver = look_up) -> Path:
    """Download an object to a new file below `into`, with the job's credentials or with this machine's.

    The latter open the buckets of `access` alone. boto3 signs a URL, and the engine's own download fetches it: so the
    endpoint, which a job may name, is held to public addresses and the body to the limits of `access`. Raises
    RequestError and leaves no file then.
    """
    bucket, key = _split(address)
    own = access.credentials
    if own is None and bucket not in access.buckets:
        raise RequestError(
            f"the bucket {bucket!r} is not one that may be read with this machine's keys",
            hint="send your own keys for it (s3Config), or have it named in access.buckets",
            code="s3_bucket_refused",
        )
    deadline = deadline_of(access)
    region = access.region if own is None else own.region
    for _ in range(2):
        url = parse_url(_signed(bucket, key, access, region))
        with ask(url, access, deadline=deadline, resolve=resolve) as answer:
            if answer.status == 200:
                return answer.save(access.max_bytes, into)
            reason, elsewhere = _reason(answer)
            refused = _refused(answer, bucket, reason)
        if answer.status not in _ELSEWHERE or elsewhere in (None, region):
            break
        # A signature holds for one region, and a bucket knows its own.
        region = elsewhere
    raise refused


def _split(address: str) -> tuple[str, str]:
    """Return bucket and key; the key is taken letter by letter, percent and question marks too."""
    bucket, _, key = address.partition("://")[2].partition("/")
    if "@" in bucket:
        raise RequestError(
            "the address holds a user name or a password",
            hint=f"{_HINT} and leave keys to the job's credentials",
            code="credentials_in_url",
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise RequestError("the address has no bucket name that could be one", hint=_HINT, code="address_invalid")
    try:
        length = len(key.encode())
    except UnicodeError:
        length = 0
    if not 0 < length <= _LONGEST or key.endswith("/"):
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


def _reason(answer: Answer) -> tuple[str, str | None]:
    """Return why the store refused, in the protocol's word, and the region it points to."""
    text = answer.beginning(_REFUSAL).decode("utf-8", "replace")
    reason = re.search(r"<Code>([A-Za-z]{1,64})</Code>", text)
    named = re.search(r"<Region>([^<]*)</Region>", text)
    region = answer.header("x-amz-bucket-region") or (named[1] if named else "")
    return reason[1] if reason else "", region if re.fullmatch(r"[a-z0-9-]{2,32}", region) else None


def _refused(answer: Answer, bucket: str, reason: str) -> RequestError:
    if reason not in _REFUSALS:
        return answer.refused()
    what, hint = _REFUSALS[reason]
    if answer.status == 404:
        return RequestError(what.format(bucket=bucket), hint=hint, code="s3_not_found")
    return RequestError(what.format(bucket=bucket), hint=hint, code="s3_denied")


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Download an object of a store to a file below `into`."""
    return fetch_object(address, access, into) if scheme == "s3" else None

"""s3://bucket/key, in Amazon's store or one that speaks its protocol."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path

from engine import Access, hookimpl
from engine.download import Answer, ask, deadline_of
from engine.errors import RequestError
from engine.network import Resolver, look_up, parse_url

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
    """Download an object to a new file below `into`, with the job's credentials or those boto3 finds configured.

    boto3 signs a URL, and the engine's own download fetches it: so the endpoint, which a job may name, is held to
    public addresses and the body to the limits of `access`. Raises RequestError and leaves no file then.
    """
    bucket, key = _split(address)
    deadline = deadline_of(access)
    region = None
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
            hint=f"{_HINT}; keys belong into the job's credentials",
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
    if find_spec("boto3") is None:
        raise RequestError(
            "s3:// addresses need the package 'boto3', which is not installed",
            hint="pip install 'multitalk-engine[s3]'",
            code="s3_unavailable",
        )
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    # Its debug log holds what it signs, session tokens among it.
    logging.getLogger("botocore.auth").setLevel(logging.INFO)
    # With Amazon the host must name the region, which boto3's signed URLs do in this style alone.
    amazon = {"addressing_style": "virtual"}
    own = access.credentials
    if own is not None and not (own.access_key and own.secret_key):
        # boto3 would take an empty key for none, and the machine's keys would go to the job's endpoint.
        raise RequestError(
            "the job's own credentials are not complete",
            hint="send access key and secret key, or no credentials at all",
            code="s3_credentials",
        )
    if own is not None and own.endpoint is not None:
        # Before boto3 sees it: its debug log has endpoints as they are, with a password too.
        parse_url(own.endpoint)
    try:
        if own is None:
            session = boto3.session.Session()
            client = session.client("s3", region_name=region, config=Config(signature_version="s3v4"))
            if ".amazonaws." in client.meta.endpoint_url:
                client = session.client("s3", region_name=region, config=Config(signature_version="s3v4", s3=amazon))
        else:
            client = boto3.session.Session(
                aws_access_key_id=own.access_key,
                aws_secret_access_key=own.secret_key,
                aws_session_token=own.session_token,
            ).client(
                "s3",
                endpoint_url=own.endpoint,
                region_name=region or own.region or "us-east-1",
                # What is configured on this machine is not the job's. Stores beside Amazon's know a bucket by its path.
                config=Config(
                    signature_version="s3v4",
                    ignore_configured_endpoint_urls=True,
                    s3={"addressing_style": "path"} if own.endpoint else amazon,
                ),
            )
        seconds = int(access.timeout) + _GRACE
        return str(client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=seconds))
    except (NoCredentialsError, PartialCredentialsError):
        raise RequestError(
            "there are no credentials for s3:// addresses",
            hint="configure them as for boto3 (AWS_ACCESS_KEY_ID and so on), or send the job's own",
            code="s3_credentials",
        ) from None
    except (BotoCoreError, ClientError, ValueError) as error:
        # Its message may quote an endpoint or a key.
        raise RequestError(
            f"boto3 cannot use the configuration for s3:// addresses: {type(error).__name__}",
            hint="check endpoint, region and profile",
            code="s3_credentials",
        ) from None


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

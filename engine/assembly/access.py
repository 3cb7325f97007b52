"""Which addresses requests may open: from the config, and with a request's own keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.config import Config
from engine.config.bounds import check_part
from engine.data import Access, Request
from engine.net.s3 import Bucket


def make_access(config: Config) -> Access:
    """Return which addresses requests may open. Raises ConfigError. The config contains no credentials."""
    access = config.access
    check_part(access, "access")
    buckets = [bucket for bucket in access.buckets if bucket]
    # The host of an endpoint may contain the bucket, as RunPod's does.
    place = Bucket(buckets[0] if buckets else "", endpoint_url=access.endpoint_url)
    return Access(
        schemes=tuple(access.schemes),
        folders=None if access.folders is None else tuple(Path(folder) for folder in access.folders),
        max_bytes=access.max_bytes,
        timeout=access.timeout,
        total_timeout=access.total_timeout,
        max_pixels=access.max_pixels,
        max_seconds=access.max_seconds,
        private_hosts=tuple(access.private_hosts),
        buckets=tuple(buckets or filter(None, [place.name])),
        endpoint_url=place.endpoint_url,
        region=access.region or None,
    )


def request_access(access: Access, request: Request) -> Access:
    """Return which addresses this request may open: a request with keys of its own reads s3:// only with those."""
    return access if request.store is None else replace(access, credentials=request.store.credentials)

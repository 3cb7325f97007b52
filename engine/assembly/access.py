"""What the addresses of requests may reach: by the config, and with a request's own keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.config import Config
from engine.config.bounds import check_part
from engine.data import Access, Request
from engine.net.s3 import Bucket


def make_access(config: Config) -> Access:
    """Return what a request's addresses may reach. Raises ConfigError. Credentials are in no config."""
    access = config.access
    check_part(access, "access")
    named = [bucket for bucket in access.buckets if bucket]
    # An endpoint may have the bucket in its host, as RunPod's has.
    place = Bucket(named[0] if named else "", endpoint_url=access.endpoint_url)
    return Access(
        schemes=tuple(access.schemes),
        folders=None if access.folders is None else tuple(Path(folder) for folder in access.folders),
        max_bytes=access.max_bytes,
        timeout=access.timeout,
        total_timeout=access.total_timeout,
        max_pixels=access.max_pixels,
        max_seconds=access.max_seconds,
        private_hosts=tuple(access.private_hosts),
        buckets=tuple(named or filter(None, [place.name])),
        endpoint_url=place.endpoint_url,
        region=access.region or None,
    )


def request_access(access: Access, request: Request) -> Access:
    """Return what this request's addresses may reach: with keys of its own it reads s3:// by those alone."""
    return access if request.store is None else replace(access, credentials=request.store.credentials)

"""What a request's addresses may reach."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.ranges import within


@dataclass
class AccessConfig:
    """What a request's addresses may reach, unless the caller of the engine passes its own Access."""

    #: Allowed schemes of addresses: "path", "data", "http", "https", "s3" and those of plugins.
    schemes: list[str] = field(default_factory=lambda: ["path", "data"])
    #: Folders in which paths must be; null: any folder.
    folders: list[str] | None = None
    #: Maximum size of one file in bytes.
    max_bytes: int = field(default=512 * 2**20, metadata=within(1, 2**50))
    #: Maximum seconds to open one address.
    timeout: float = field(default=60.0, metadata=within(0.001, 86_400))
    #: Maximum seconds to open all addresses of a request.
    total_timeout: float = field(default=300.0, metadata=within(0.001, 86_400))
    #: Maximum pixels of a picture or mask; the default is 8192 x 8192, the upper bound is Pillow's own limit.
    max_pixels: int = field(default=2**26, metadata=within(1, 178_956_970))
    #: Maximum seconds of a voice, after its part of the file is selected.
    max_seconds: float = field(default=3600.0, metadata=within(0.001, 86_400))
    #: Hosts that are allowed although they are not on the public internet.
    private_hosts: list[str] = field(default_factory=list)
    #: Buckets that s3:// addresses may use with this machine's keys; "": the one in the host name of `endpoint_url`.
    buckets: list[str] = field(default_factory=lambda: ["${oc.env:S3_BUCKET,''}"])
    #: Endpoint of their store, if it is not Amazon's.
    endpoint_url: str | None = "${oc.env:BUCKET_ENDPOINT_URL,null}"
    #: Their region.
    region: str | None = "${oc.env:AWS_REGION,null}"

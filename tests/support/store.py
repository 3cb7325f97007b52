"""A store that speaks S3, in a process of its own."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


#: Any are right: the store does not look at them.
KEYS = {"BUCKET_ACCESS_KEY_ID": "store-id", "BUCKET_SECRET_ACCESS_KEY": "store-secret-key"}


def store_environment(port: int, bucket: str) -> dict[str, str]:
    """Return what tells a worker to keep videos in `bucket` of the store at `port`."""
    return {
        **KEYS,
        "S3_BUCKET": bucket,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "BUCKET_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


@contextmanager
def storing(log: Path, buckets: Mapping[str, str], port: int | None = None) -> Iterator[int]:
    """Run a store with `buckets`, names and their regions, while the block runs; yield its port on loopback."""
    port = port or free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as file, subprocess.Popen(words, stdout=file, stderr=file) as process:
        try:
            while process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            for name, region in buckets.items():
                _make(port, name, region)
            yield port
        finally:
            process.terminate()


def _make(port: int, name: str, region: str) -> None:
    tag = "CreateBucketConfiguration"
    place = "" if region == "us-east-1" else f"<{tag}><LocationConstraint>{region}</LocationConstraint></{tag}>"
    scope = f"AWS4-HMAC-SHA256 Credential=test/20260101/{region}/s3/aws4_request"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("PUT", f"/{name}", place, {"Authorization": scope})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
    finally:
        connection.close()

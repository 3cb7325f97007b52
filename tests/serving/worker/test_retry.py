"""A video that was made and could not be uploaded: /retry uploads it, through endpoint, worker and a real store."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from running_endpoint import running
from store import free_port, store_environment, storing

from engine.client import Client, file
from engine.serving.endpoint.limits import EndpointLimits

pytest.importorskip("aiohttp")
pytest.importorskip("moto")
#: Seconds; a busy machine imports torch for minutes.
PATIENCE = 1200.0
EXAMPLES = files("engine") / "examples"
LIMITS = EndpointLimits(execution_timeout=PATIENCE, start_timeout=PATIENCE)


@pytest.mark.slow
def test_a_video_whose_upload_failed_is_uploaded_by_retry_and_not_made_again(tmp_path: Path) -> None:
    volume, port = tmp_path / "volume", free_port()
    volume.mkdir()
    environment = {
        **store_environment(port, "films"),
        "MODEL_PATH": str(volume),
        "NO_PROXY": "127.0.0.1",
    }
    # Without the probe, which would not let a job begin while the store is down.
    overrides = ["model=tiny", "sink.probe=false", "sink.attempts=2", "sink.backoff=0.1"]
    command = [sys.executable, "-m", "engine", "runpod", *overrides]
    media = {"reference_image": file(str(EXAMPLES / "one.png")), "audio_1": file(str(EXAMPLES / "one.flac"))}
    with (
        running(worker=command, environment=environment, limits=LIMITS) as server,
        Client(server.endpoint.endpoint_id, api_key="any", base_url=server.endpoint.base_url) as client,
    ):
        sent = client.submit({**media, "prompt": "a person talks", "num_frames": 5, "fps": 25, "turbo": True})
        job = server.job(sent.id)
        server.until(lambda: job.final, PATIENCE)

        assert job.state == "FAILED"
        assert job.output["error_code"] == "s3_upload_failed", job.answer(0)
        assert "the video is kept" in job.error
        assert str(tmp_path) not in json.dumps(job.answer(0))
        (kept,) = volume.rglob("*.mp4")
        made = kept.read_bytes()

        with storing(tmp_path / "store.log", {"films": "us-east-1"}, port):
            worker = job.worker
            sent.retry()
            retried = server.job(sent.id)
            server.until(lambda: retried.final, PATIENCE)
            assert retried.state == "COMPLETED", retried.answer(0)
            assert retried.worker == worker
            assert sent.download(tmp_path / "talk.mp4").path.read_bytes() == made
        # No stage of a generation among them.
        assert list(retried.output["timings"]) == ["keep"]
        assert any("not generated again" in warning for warning in retried.output["warnings"])
        assert not [path for path in volume.rglob("*") if path.is_file()]

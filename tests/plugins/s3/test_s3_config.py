"""What the sink may be told, and how it reads it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pluggy
import pytest
from omegaconf import OmegaConf
from s3_store import SENTINELS

from engine.components import JobSink, Sink
from engine.errors import ConfigError, RequestError
from engine.net.s3 import Bucket
from engine.plugin import spec
from engine.plugin.register import Register
from plugins.sinks import s3 as plugin
from plugins.sinks.s3 import S3Config, S3Sink


def test_plugin_offers_its_sink() -> None:
    manager = pluggy.PluginManager("multitalk_engine")
    manager.add_hookspecs(spec)
    manager.register(plugin)
    register: Register[Sink] = Register("sink")

    manager.hook.register_sinks(register=register)

    sink = register.build(S3Config(bucket="films", region=None, endpoint_url=None))
    assert isinstance(sink, S3Sink)
    assert isinstance(sink, JobSink)


def test_config_reads_its_place_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"S3_BUCKET": "b", "AWS_REGION": "r", "BUCKET_ENDPOINT_URL": "u", "MODEL_PATH": "/m"}.items():
        monkeypatch.setenv(name, value)

    config = OmegaConf.to_object(OmegaConf.structured(S3Config))

    assert isinstance(config, S3Config)
    assert (config.bucket, config.region, config.endpoint_url, config.volume) == ("b", "r", "u", "/m")


def test_config_holds_no_keys() -> None:
    text = OmegaConf.to_yaml(OmegaConf.structured(S3Config), resolve=True)

    assert not [sentinel for sentinel in SENTINELS if sentinel in text]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url_seconds", 7 * 24 * 3600 + 1),
        ("url_seconds", 0),
        ("attempts", 0),
        ("backoff", -1.0),
        ("timeout", 0.0),
        ("addressing", "host"),
        ("compare", "etag"),
        ("public_url", "https://a/{name}"),
        ("public_url", "https://a/{"),
    ],
)
def test_values_nobody_can_mean_are_config_errors(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        S3Sink(replace(S3Config(), **{field: value}))  # type: ignore[arg-type]
    assert caught.value.field == f"sink.{field}"
    assert caught.value.hint


@pytest.mark.parametrize("job", ["", "..", "a/b", ".hidden", "a b", "ä", "a" * 129])
def test_job_name_that_is_no_part_of_a_key_is_refused(job: str, config: S3Config) -> None:
    with pytest.raises(RequestError) as caught:
        S3Sink(config).for_job(job, None)
    assert caught.value.field == "request.job"


@pytest.mark.parametrize(
    ("name", "endpoint", "found"),
    [
        (
            "films",
            "https://films.s3.eu-west-1.amazonaws.com",
            ("films", "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ),
        (
            "",
            "https://my.films.s3.eu-west-1.amazonaws.com",
            ("my.films", "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ),
        ("films", "https://films.nyc3.digitaloceanspaces.com", ("films", "https://nyc3.digitaloceanspaces.com", None)),
        ("films", "https://nyc3.digitaloceanspaces.com", ("films", "https://nyc3.digitaloceanspaces.com", None)),
        ("storage", "https://storage.googleapis.com", ("storage", "https://storage.googleapis.com", None)),
        ("films", "http://minio:9000", ("films", "http://minio:9000", None)),
        ("films", None, ("films", None, None)),
    ],
)
def test_endpoint_with_the_bucket_in_its_host_is_understood(
    name: str, endpoint: str | None, found: tuple[str, str | None, str | None]
) -> None:
    bucket = Bucket(name, endpoint_url=endpoint)

    assert (bucket.name, bucket.endpoint_url, bucket.region) == found


def test_looking_at_the_sink_does_not_import_boto3() -> None:
    code = (
        "import sys, plugins.sinks.s3; print('boto3' in sys.modules, 'botocore' in sys.modules, 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False"] * 3

"""The doctor looks at this machine for real: it finds what is wrong, says what to do, and tells no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli.main import main
from engine.data import AttentionSite
from engine.doctor import checks
from engine.doctor.checks import CheckContext, CheckResult, examine

SECRETS = {
    "BUCKET_ACCESS_KEY_ID": "SENTINEL0KEY0ID",
    "BUCKET_SECRET_ACCESS_KEY": "sentinel0secret0key",
    "AWS_SESSION_TOKEN": "sentinel0session0token",
    "RUNPOD_AI_API_KEY": "sentinel0runpod0key",
    "HF_TOKEN": "hf_sentinel0token",
}
TINY = ("model=tiny", "source=packaged", "device=cpu")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "RUNPOD_LOG_LEVEL", "S3_BUCKET", "BUCKET_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL_PATH", str(tmp_path / "models"))


def by_name(found: list[CheckResult]) -> dict[str, CheckResult]:
    return {finding.name: finding for finding in found}


def one(check: checks.Check, *overrides: str) -> CheckResult:
    (found,) = check(CheckContext(overrides))
    return found


def test_a_machine_that_can_run_the_tiny_model_is_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json", *TINY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is True
    found = {finding["name"]: finding for finding in told["findings"]}
    names = {"versions", "imports", "device", "host memory", "attention=sdpa", "weights", "volume"}
    names |= {"disk", "sink", "runpod"}
    assert {found[name]["state"] for name in names} == {"ok"}
    assert "runs as native" in found["attention=sdpa"]["what"]
    assert found["attention"]["state"] == "note"
    assert found["attention"]["details"]["flash"] == "attention=flash runs on CUDA, not on 'cpu'"
    # Each kernel that a CPU can run has run.
    ours = {name.partition("=")[2] for name in found if name.startswith("attention=")}
    assert ours == {"auto", "sdpa", "sdpa-flash", "math", "flex", "radial"}
    assert {found[f"attention={name}"]["state"] for name in ours} == {"ok"}
    assert found["volume"]["details"]["read_bytes_per_second"] > 0
    assert found["host memory"]["details"]["needed_bytes"] < found["host memory"]["details"]["free_bytes"]


def test_weights_that_are_not_there_are_broken_and_the_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "model=multitalk", "source=volume", "device=cpu"]) == 1
    text = capsys.readouterr().out
    assert "BROKEN weights" in " ".join(text.split())
    assert "multitalk models pull --preset multitalk-int8\n" in text
    assert "about 92.9 GB" in text
    # A 14B model in float32 needs more than any machine that runs this.
    assert "a window needs 11" in text
    assert len(text.splitlines()) <= 40


def test_cuda_without_a_gpu_is_broken() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = one(checks.check_device, "model=tiny", "device=cuda")
    assert found.state == "broken"
    assert "device=cpu" in found.hint


def test_a_build_for_cpus_beside_a_driver_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("torch is built for CUDA here")
    monkeypatch.setattr(checks, "_driver", lambda: "580.65")
    found = one(checks.check_device, *TINY)
    assert found.state == "broken"
    assert "CUDA build" in found.hint


def test_a_chosen_backend_that_cannot_run_is_broken_and_others_are_notes() -> None:
    found = by_name(list(checks.check_attention(CheckContext([*TINY, "attention=flash"]))))
    assert found["attention=flash"].state == "broken"
    assert "attention=sdpa" in found["attention=flash"].hint
    assert "sage" in found["attention"].details
    assert found["attention=auto"].state == "ok"


def test_on_a_card_missing_packages_and_kernels_of_the_hub_say_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "site_here", lambda *_: AttentionSite("cuda", "bfloat16", (8, 9)))
    monkeypatch.setattr(checks, "try_attention", lambda choice, site: 0.001)
    found = by_name(list(checks.check_attention(CheckContext([*TINY, "device=cuda"]))))
    assert found["attention=cudnn"].state == "ok"
    assert "multitalk-engine[flash]" in found["attention=flash"].hint
    assert "multitalk-engine[kernels]" in found["attention=flash-hub"].hint
    assert set(found["attention"].details) == {
        *("flash3", "flash3-hub", "flash3-varlen", "flash3-varlen-hub", "flash4-hub"),
        *("aiter-hub", "sage-fp8-sm90", "sage3-hub"),
    }
    monkeypatch.setattr(checks, "refusal", lambda kernel, site, *_: None)
    found = by_name(list(checks.check_attention(CheckContext([*TINY, "device=cuda"]))))
    assert found["attention=flash-hub"].what.startswith("not tried: it would download and run code from kernels-com")


def test_a_backend_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "try_attention", lambda choice, site: 0.5)
    found = by_name(list(checks.check_attention(CheckContext([*TINY, "attention=sdpa"]))))
    assert found["attention=sdpa"].state == "broken"
    assert found["attention=auto"].state == "note"


def test_a_missing_compiler_is_broken_only_if_compiling_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert one(checks.check_compile, *TINY).state == "ok"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "missing_for_triton", lambda: ("there is no C compiler", "install gcc"))
    for chosen, state in (("none", "note"), ("blocks", "broken")):
        found = one(checks.check_compile, "model=tiny", "device=cuda", f"compile={chosen}")
        assert (found.name, found.state, found.hint) == (f"compile={chosen}", state, "install gcc")


def test_the_probe_of_a_folder_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PROBE", 4 * 2**20)
    (tmp_path / "weights").write_bytes(bytes(2**20))
    assert checks.read_speed(tmp_path / "weights") > 0
    assert (checks.write_speed(tmp_path) or 0) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert checks.write_speed(tmp_path / "none") is None


def test_a_worker_that_logs_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", "worker-1")
    found = one(checks.check_runpod, *TINY)
    assert found.state == "note"
    assert "RUNPOD_LOG_LEVEL=INFO" in found.hint
    monkeypatch.setenv("RUNPOD_LOG_LEVEL", "INFO")
    assert one(checks.check_runpod, *TINY).state == "ok"


def test_a_store_that_is_away_is_broken_and_no_secret_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("boto3")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNPOD_POD_ID", "worker-1")
    overrides = [
        *TINY,
        "sink=s3",
        "sink.bucket=films",
        "sink.endpoint_url=http://127.0.0.1:9",
        "sink.attempts=1",
        f"sink.keep_folder={tmp_path}",
    ]
    assert main(["doctor", *overrides]) == 1
    text = capsys.readouterr().out
    assert main(["doctor", "--json", *overrides]) == 1
    text += capsys.readouterr().out
    assert "the store at 127.0.0.1 cannot be reached" in text.replace("the store 127", "the store at 127")
    assert not [value for value in SECRETS.values() if value in text]


def test_a_check_that_fails_hides_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_stars(_: CheckContext) -> Any:
        raise ValueError("https://user:sentinel0secret0key@example.org")

    monkeypatch.setattr(checks, "CHECKS", (check_stars, checks.check_runpod))
    found = examine(TINY)
    assert [(finding.name, finding.state) for finding in found] == [("stars", "broken"), ("runpod", "ok")]
    assert "sentinel0secret0key" not in str(found)

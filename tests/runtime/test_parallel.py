"""One video on two processes: the latents of one process, one file, one voice, one end."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import parallel_processes
import pytest
import torch
from steering import make_cache

from engine import EngineService
from engine.assembly.compose import compose
from engine.assembly.sampling import build_sampling
from engine.assembly.settings import check_parallel
from engine.cli.main import main
from engine.data import Motion
from engine.errors import ConfigError
from engine.network.sequence import Shard, check_heads
from engine.plugin.manager import installed
from engine.runtime.parallel import LoadWeights, groups_of, message_classes, take_device
from plugins.families.multitalk.model import load_multitalk

ROOT = Path(__file__).parents[2]
MESSAGES = installed().families.build_default("multitalk").messages()
TINY = ROOT / "engine" / "weights" / "tiny"
#: Heads are computed by other calls of the same kernel; two processes on one machine come out bit for bit alike.
TOLERANCE = 1e-4
TALK = [
    *("generate", "--image", str(ROOT / "engine" / "examples" / "one.png")),
    *("--audio", str(ROOT / "engine" / "examples" / "one.flac")),
    *("--prompt", "a person talks", "--frames", "5", "device=cpu", "sampler=turbo"),
]


def torchrun(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A bound, so that processes that wait for each other are a failure: the machine may be busy.
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=1800)


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what we said on stderr, without torchrun's own report."""
    return [line for line in done.stderr.splitlines() if line.startswith("multitalk:")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    done = torchrun(str(ROOT / "tests" / "support" / "parallel_processes.py"), "compare", str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_divided_forwards_equal_whole_ones(report: Any) -> None:
    assert len(report["forwards"]) == 12
    assert max(report["forwards"].values()) < TOLERANCE


@pytest.mark.parametrize("case", parallel_processes.CASES)
def test_two_processes_give_the_latents_of_one(case: str, report: Any) -> None:
    differences = report["loops"][case]

    assert len(differences) == (2 if parallel_processes.CASES[case][1] == parallel_processes.LONG else 1)
    assert max(differences) < TOLERANCE


@pytest.mark.parametrize("case", parallel_processes.GUIDED)
def test_processes_that_share_guidance_passes_give_the_bits_of_one(case: str, report: Any) -> None:
    assert report["guided"][case]
    assert all(report["guided"][case])


def test_processes_that_share_passes_all_have_the_same_latents(report: Any) -> None:
    assert report["guided alike"]
    assert all(report["guided alike"])


def test_the_tokens_were_divided_and_steps_skipped(report: Any) -> None:
    assert report["parts"]
    assert all(report["parts"])
    assert {True, False} == set(report["teacache"])


def test_both_processes_have_the_same_latents(folder: Path) -> None:
    led, followed = torch.load(folder / "led.pt"), torch.load(folder / "followed.pt")

    # The second process saw more: what was made after the cancelled request.
    assert all(torch.equal(*pair) for pair in zip(led, followed[: len(led)], strict=True))


def test_a_cancelled_request_leaves_the_processes_in_step(report: Any) -> None:
    assert report["cancelled"] == "cancelled during denoise"
    assert report["after"] == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked is Linux' own")
def test_no_thread_of_the_group_outlives_it(report: Any) -> None:
    # One that asks for Python after its end aborts the process, and torchrun calls the whole run failed.
    assert report["threads"]
    assert not [name for name in report["threads"] if "gloo" in name]


def test_first_block_cache_is_refused(report: Any) -> None:
    assert "parallel=ulysses" in report["firstblock"]
    with pytest.raises(ConfigError, match="each process has only a part"):
        make_cache("firstblock", agree=bool)


@pytest.mark.slow
def test_one_file_and_one_answer(tmp_path: Path) -> None:
    done = torchrun("-m", "engine", *TALK, "--output", "films/talk.mp4", "parallel=ulysses", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert [Path(line).name for line in done.stdout.splitlines()] == ["talk.mp4"]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["films/talk.mp4"]
    told = ours(done)
    assert len(told) == len(set(told))


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "support" / "parallel_processes.py")
    done = torchrun(script, "fail", *TALK, "--quiet", "parallel=ulysses", cwd=tmp_path)

    assert done.returncode == 1  # torchrun's
    errors = [line for line in ours(done) if "error" in line]
    assert errors == ["multitalk: error: process 1: this device has caught fire"]
    assert not list(tmp_path.iterdir())


class Evil:
    """What an object of a pickle may ask for."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_a_word_between_processes_holds_our_own_nouns_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word, is_ours in (
        (LoadWeights(), True),
        (Motion(torch.ones(2), clean=True), True),
        (Evil(), False),
        (Path("x"), False),
    ):
        buffer = io.BytesIO()
        torch.save(word, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals(message_classes(MESSAGES)):
            if is_ours:
                assert type(torch.load(buffer, weights_only=True)) is type(word)
            else:
                with pytest.raises(pickle.UnpicklingError):
                    torch.load(buffer, weights_only=True)
    assert not (tmp_path / "pwned").exists()


def test_a_request_s_config_arrives_in_other_processes() -> None:
    buffer = io.BytesIO()
    config = compose(["sampler=turbo", "cache=teacache"])
    torch.save(config, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(message_classes(MESSAGES)):
        assert torch.load(buffer, weights_only=True) == config


def test_without_torchrun_the_command_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TALK, "--output", str(tmp_path / "talk.mp4"), "parallel=ulysses"]) == 2

    told = capsys.readouterr().err
    assert told.startswith("multitalk: error: parallel: ")
    assert "torchrun --nproc-per-node 2 -m engine generate" in told
    assert told.count("\n") == 1


def test_a_plan_needs_no_torchrun(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TALK[1:], "parallel=ulysses"]) == 0

    assert "estimates are for a single device" in capsys.readouterr().out


def test_torchrun_without_parallel_is_refused() -> None:
    config = compose(["parallel.run=1234", "parallel.size=2"])

    with pytest.raises(ConfigError, match="torchrun started 2 processes"):
        check_parallel(config)


def test_an_entrypoint_that_serves_many_is_refused() -> None:
    with pytest.raises(ConfigError, match="endpoint does not work on several devices"):
        check_parallel(compose(["parallel=ulysses", "entrypoint=endpoint"]))


def test_unknown_parallel_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        EngineService(["parallel=ring"])
    assert "guidance, none, ulysses" in str(caught.value)


def test_processes_that_do_not_divide_into_groups_are_refused() -> None:
    config = compose(["parallel=guidance", "parallel.groups=2", "parallel.size=3"])

    with pytest.raises(ConfigError, match="3 processes cannot be divided into 2 groups"):
        groups_of(config.parallel)
    assert [groups_of(compose([f"parallel={way}", "parallel.size=4"]).parallel) for way in ("ulysses", "guidance")] == [
        1,
        4,
    ]


def test_a_batch_is_refused_where_processes_share_forwards() -> None:
    with pytest.raises(ConfigError, match="one pass only"):
        build_sampling(compose(["guidance.batched=true"]), installed(), agree=bool)


def test_a_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TALK, "parallel=ulysses", "-m", "request.seed=1,2"]) == 2

    assert capsys.readouterr().err.count("a sweep runs in one process") == 1


def test_heads_that_do_not_divide_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError) as caught:
        load_multitalk(TINY, device="cpu", dtype="float32", processes=3)

    assert str(caught.value) == "parallel: 4 attention heads cannot be divided evenly among 3 processes; start 2 or 4"
    check_heads(40, 8)


def test_other_processes_load_the_transformer_alone() -> None:
    model = load_multitalk(TINY, device="cpu", dtype="float32", processes=2, alone=True)

    with model.use("transformer"):
        assert not any(parameter.is_meta for parameter in model.transformer.parameters())
    assert all(parameter.is_meta for parameter in model.codec.vae.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("visible", "seen"), [(None, "1"), ("4,GPU-5,6", "GPU-5")])
def test_each_process_sees_a_device_of_its_own(visible: str | None, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    if visible is None:
        # Set first, so that it is as before afterwards.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    take_device("auto", 1)

    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    with pytest.raises(ConfigError, match="no device for this process"):
        take_device("cuda", 3)


def test_parts_that_do_not_divide_repeat_the_last_token() -> None:
    tokens = torch.arange(7.0)[None, :, None]
    parts = [Shard(None, rank, 3, 7, 2).select(tokens)[0, :, 0].tolist() for rank in range(3)]

    assert parts == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]


def test_frames_of_a_part_are_whole() -> None:
    shard = Shard(None, 1, 3, 8, 4)  # tokens 3, 4, 5 of frames of 4

    filled = shard.fill_frames(torch.ones(1, 3, 1, 1), 2)
    assert shard.select_frames(torch.tensor([10.0, 20.0])).tolist() == [10, 20]
    assert filled[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert shard.cut_frames(filled).sum() == 3

"""Untrusted provenance: whatever it contains, `show` prints plain text and `again` ends in one line or a plan."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hostile_text import HOSTILE, acts

from engine.cli.main import main
from engine.cli.provenance import _request, provenance_overrides
from engine.cli.provenance_check import check_form, is_deep, suspicious_values
from engine.errors import EngineError
from engine.stages.write import read_provenance

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
PICTURE, VOICE = str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac")
#: What may stand in place of any value, or be a key beside it.
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**9, 10**30, 10**400, 1e308, 1e-300, float("nan"), float("inf"), "", "x", "???", "null"),
    *([], {}, [None], {"a": {"b": [1]}}, "${oc.env:HOME}", "${model.name}", "/etc/passwd", "../../x", "~/x", "C:\\x"),
    *(
        "a\0b",
        "\ud800",
        HOSTILE,
        "x" * 20_000,
        "'",
        "\\",
        "a=b",
        "{a: b}",
        "[1, 2",
        "https://example.org/x",
        "_target_",
    ),
    *(["/etc/passwd"], [[[[1]]]], {"_target_": "os.system"}, {"name": "x"}, {"name": None}, [1e999], "1e999", "0x10"),
)


def film(path: Path, provenance: Any, *, raw: str | None = None) -> Path:
    """Write a small video that carries provenance, or any text in its place."""
    comment = json.dumps({"multitalk": provenance}) if raw is None else raw
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")):
            container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def provenance(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("film") / "talk.mp4"
    words = ["--image", PICTURE, "--audio", VOICE, "--prompt", "hi", "--frames", "1", "--quiet", "--output", str(path)]
    assert main(["generate", *words, "model=tiny", "device=cpu", "sampler.steps=1"]) == 0
    found: dict[str, Any] = read_provenance(path)
    return found


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of provenance."""
    if place:
        yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*place, key))


def mutated(provenance: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """Return a copy with one to three values exchanged, removed, renamed or added."""
    changed = copy.deepcopy(provenance)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place = dice.choice(list(places(changed)))
        owner: Any = changed
        for key in place[:-1]:
            owner = owner[key]
        value = copy.deepcopy(dice.choice(VALUES))
        match dice.randrange(6):
            case 0:
                del owner[place[-1]]
            case 1 if isinstance(owner, dict):
                owner[str(value)[:50]] = owner.pop(place[-1])
            case 2 if isinstance(owner, dict):
                owner[str(value)[:50]] = value
            case _:
                owner[place[-1]] = value
        if not isinstance(changed, dict) or not changed:
            break
    return changed


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_mutated_provenance_is_shown_plain_and_judged_before_use(
    provenance: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several hundred of them, up to where the config would be composed."""
    dice = random.Random(22)
    refused = passed = 0
    path = tmp_path / "x.mp4"
    for _ in range(400):
        changed = mutated(provenance, dice)
        film(path, changed)
        status, out, err = run(["show", str(path)], capsys)
        assert acts(out.replace("\n", "")) == ""
        assert status == 0 or (status == 2 and err.count("\n") == 1)
        if status:
            continue
        carried = read_provenance(path)
        if is_deep(carried):
            refused += 1
            continue
        try:
            check_form(carried)
            overrides = provenance_overrides(carried, _request(carried, [PICTURE], [VOICE], []))
        except (ValueError, KeyError, TypeError, EngineError):
            refused += 1
            continue
        passed += 1
        assert all(isinstance(override, str) for override in overrides)
        assert all(isinstance(line, str) for line in suspicious_values(carried))
    assert refused > 100
    assert passed > 50


def judged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hold `again` to a plan, or to one line of error behind lines of warning."""
    words = ["again", str(path), "--image", PICTURE, "--audio", VOICE, "--dry-run", "device=cpu"]
    status, out, err = run(words, capsys)
    assert acts(f"{out}{err}".replace("\n", "")) == ""
    errors = [line for line in err.splitlines() if not line.startswith("multitalk: warning: ")]
    assert "Traceback" not in err
    if status == 0:
        assert not errors
        assert out.splitlines()
    else:
        assert (status, len(errors)) == (2, 1), err
        assert errors[0].startswith("multitalk: error: ")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_provenance_ends_in_a_plan_or_in_one_line(
    seed: int, provenance: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(seed)
    changed = mutated(provenance, dice)
    judged(film(tmp_path / "x.mp4", changed), capsys)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"multitalk": ' + '{"a": ' * 5000 + "1" + "}" * 5001, "nested too deep"),
        ('{"multitalk": {"format": 1, "a": ' + "[" * 200 + "]" * 200 + "}}", "nested too deep"),
        ('{"multitalk": {"format": 1, "a": [' + "0," * 30_000 + "0]}}", "nested too deeply, or too long"),
        ('{"multitalk": [1]}', "has no provenance"),
        ("[" * 100_000, "nested too deep"),
        ('{"multitalk": {"format": ' + "9" * 5000 + "}}", "has no provenance"),
        ('{"multitalk": {"format": {"x": "\\u001b[2J"}}}', "has provenance of format"),
    ],
)
def test_provenance_of_no_form_is_one_line_for_show_and_again(
    raw: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "x.mp4", None, raw=raw)
    for words in (["show", str(path)], ["show", "--json", str(path)], ["again", str(path), "--image", PICTURE]):
        status, out, err = run(words, capsys)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
        assert acts(err.removesuffix("\n")) == ""


def test_suspicious_values_are_reported_before_they_are_used(
    provenance: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = copy.deepcopy(provenance)
    changed["lora"] = {"mode": "runtime", "extra": [{"file": "/etc/passwd", "scale": 1.0}]}
    changed["quant"] |= {"file": "../../secret.gguf"}
    changed["sampler"] |= {"steps": 999}
    changed["video"] |= {"preset": "placebo"}
    changed["request"] |= {"frames": 80_000, "prompt": "/etc/passwd is only a text"}
    path = film(tmp_path / "x.mp4", changed)

    _, _, err = run(["again", str(path), "--image", PICTURE, "--audio", VOICE, "--dry-run", "device=cpu"], capsys)

    told = err.splitlines()
    start = "multitalk: warning: the provenance "
    assert set(told[:5]) == {
        f"{start}names a file or folder outside the weights folder: '../../secret.gguf' (quant.file)",
        f"{start}names a file or folder outside the weights folder: '/etc/passwd' (lora.extra[0].file)",
        f"{start}asks for sampler.steps=999; the usual range is 1 to 100",
        f"{start}asks for request.frames=80000; the usual range is 1 to 9000",
        f"{start}asks for video.preset=placebo, which encodes many times more slowly",
    }


def test_provenance_of_the_engine_is_not_suspicious(provenance: dict[str, Any]) -> None:
    check_form(provenance)
    assert suspicious_values(provenance) == []
    assert not is_deep(provenance)

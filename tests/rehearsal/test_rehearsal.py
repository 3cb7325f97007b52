"""A rehearsal runs the engine itself on a pretended card: the images' recipes pass, and what is broken is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sizes import SMALL
from torch import nn

from engine.cli.main import main
from engine.planning.gpus import cards, find_card
from engine.rehearsal.card import pretended
from engine.rehearsal.counts import Copy, Counts, ForwardCounts
from engine.rehearsal.rehearse import default_card, sizes_of
from engine.rehearsal.report import Report, make_report, reckon
from engine.rehearsal.walk import Scene, StageRow, Walk, walk

#: The model of the package, as short as a video can be: a few seconds of this machine's time.
SHORT = ("model=tiny", "model.window=5", "continuation.frames=1", "continuation.blend=0", "memory=none")
ONE = Scene(speakers=1, windows=1, steps=1)
LARGE = 2**24


def report_of(overrides: tuple[str, ...], scene: Scene, **changed: Any) -> Report:
    card = replace(default_card(overrides), **changed)
    seen = walk(overrides, card, scene, expandable=True)
    return make_report(seen, sizes_of(seen))


def kinds(report: Report) -> set[str]:
    """Return the kinds of faults, but for what a plan says otherwise."""
    return {fault.kind for fault in report.faults} - {"plan"}


def documented(report: Mapping[str, Any]) -> None:
    """Hold that docs/rehearsal.md names each key of a report, of its stages and of what stands in those."""
    text = (Path(__file__).parents[2] / "docs" / "rehearsal.md").read_text("utf-8")
    keys = set(report) | set(report["settings"]) | {key for fault in report["faults"] for key in fault}
    for stage in report["stages"]:
        keys |= {*stage, *stage["up"], *(stage["forward"] or ())}
    assert {key for key in keys if f"`{key}`" not in text} == set()


# --- the recipes of the images ----------------------------------------------------------------------------------------


# All recipes are rehearsed by `nox -s rehearse`; the first one streams quantised blocks, the other has all on the card.
@pytest.fixture(scope="module", params=[pytest.param(f"card-{size}gb", marks=pytest.mark.slow) for size in (24, 80)])
def recipe(request: pytest.FixtureRequest) -> Report:
    """Two speakers, 480p, two windows of a step: 4 of 40 blocks, all of everything else."""
    return report_of((f"recipe={request.param}",), Scene(speakers=2, windows=2, steps=1, blocks=4))


def test_recipes_make_two_windows_without_a_fault(recipe: Report) -> None:
    assert kinds(recipe) == set(), [str(fault) for fault in recipe.faults]
    assert recipe.fits
    assert {stage["window"] for stage in recipe.stages if stage["stage"] == "denoise"} == {1, 2}
    assert recipe.settings["size"] is not None
    assert recipe.settings["speakers"] == 2
    documented(recipe.as_json())


def test_inside_a_forward_nobody_waits(recipe: Report) -> None:
    whole = next(stage["weights"]["transformer"] for stage in recipe.stages if "transformer" in stage["weights"])
    for stage in recipe.stages:
        if stage["stage"] == "denoise":
            forward = stage["forward"]
            assert (forward["waits"], forward["reads"], forward["down"]) == (0, 0, 0)
            assert stage["down"]["bytes"] == 0
            if recipe.settings["profile"] == "none":
                assert (forward["copies"], forward["up"]) == (0, 0)
                assert whole > 10**9
            else:
                assert forward["up"] > 10**9
                assert stage["up"]["blocking_bytes"] < 0.01 * stage["up"]["bytes"]


def test_flash_attention_is_taken_for_all_but_who_speaks_where(recipe: Report) -> None:
    taken = {
        tuple(key.split()[index] for index in (0, -1))
        for stage in recipe.stages
        if stage["stage"] == "denoise"
        for key in stage["attention"]
    }
    fused = "cudnn" if (find_card(recipe.card) or cards()[-1]).capability[0] == 9 else "flash"
    assert (fused, "bfloat16") in taken
    assert "math" not in {kernel for kernel, _ in taken}


# --- what is broken is found ------------------------------------------------------------------------------------------


def breaking(monkeypatch: pytest.MonkeyPatch, what: Callable[[torch.Tensor], Any]) -> None:
    """Have each block do something more with the tokens that it is given."""
    from plugins.families.multitalk.transformer import MultiTalkTransformerBlock

    usual = MultiTalkTransformerBlock.forward

    def forward(self: Any, tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        what(tokens)
        return usual(self, tokens, *args, **kwargs)

    monkeypatch.setattr(MultiTalkTransformerBlock, "forward", forward)


@pytest.mark.slow
def test_the_packaged_model_passes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["rehearse", *SHORT, "--speakers", "1", "--windows", "1", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rehearsal of tiny on a simulated H200 141 GB, ")
    # Columns that do not fit follow below, with the stages' names again.
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[-1] for line in lines if line.startswith("stage ")] == ["down", "r/w"]
    assert any(line.startswith("1 speaker, 1 window of 1 step, ") for line in lines)
    assert any(line.startswith("denoise 1") for line in lines)
    assert any(line.startswith("fits: ") for line in lines)


def test_reads_copies_and_leavings_in_a_forward_are_faults_of_their_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []

    def broken(tokens: torch.Tensor) -> None:
        float(tokens.flatten()[0])
        kept.append(torch.zeros(LARGE, device=tokens.device))
        kept[-1].cpu()

    breaking(monkeypatch, broken)
    report = report_of(SHORT, ONE)
    assert kinds(report) == {"waits", "copies", "left"}
    told = {kind: [str(fault) for fault in report.faults if fault.kind == kind] for kind in ("waits", "copies", "left")}
    # Where it happens is where the engine called what was put there.
    place = r"plugins/families/multitalk/transformer.py"
    assert any("the host waits for the device inside of forwards" in what and place in what for what in told["waits"])
    assert any("values are read from the device, 0 may be" in what and place in what for what in told["waits"])
    assert any("GB are copied back to the host" in what for what in told["copies"])
    assert any("copies inside of forwards" in what and place in what for what in told["copies"])
    assert any("GB are left on the device" in what and place in what for what in told["left"])
    assert {fault.where for fault in report.faults if fault.kind in told} >= {"denoise of window 1"}


@pytest.mark.slow
def test_a_device_mismatch_ends_the_rehearsal_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(monkeypatch, lambda tokens: tokens + torch.ones(1, 1))
    assert main(["rehearse", *SHORT, "--speakers", "1", "--windows", "1", "--steps", "1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["fits"]
    (fault,) = (fault for fault in report["faults"] if fault["kind"] == "error")
    assert "same device" in fault["what"] or "two different devices" in fault["what"]
    assert " at plugins/families/multitalk/transformer.py:" in fault["what"]
    documented(report)


def test_a_card_that_is_too_small_is_a_fault() -> None:
    report = report_of(SHORT, ONE, memory_mib=820)
    assert kinds(report) == {"memory"}
    assert not report.fits
    assert "the card is too small by 0." in str(report.faults[0])


@pytest.mark.slow
def test_blocks_that_nobody_waits_for_are_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.loading.streamer.StreamLane.wait", lambda self, place: None)
    report = report_of((*SHORT, "memory=group-offload"), ONE)
    assert kinds(report) == {"order"}
    assert any("read before it is written" in str(fault) for fault in report.faults)


def thrice(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):
        made: torch.Tensor = network(x)
    return made


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_offloading_that_started_this_cannot_pin(low_memory: bool) -> None:
    # diffusers keeps `tensor.cpu()` as the copy on the host, which of a torchao tensor is the tensor itself.
    from diffusers.hooks import apply_group_offloading

    from engine.loading.quanto import quantise

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    with pretended(cards()[0]):
        network = Network().to(torch.bfloat16)
        for block in network.blocks:
            dense: Any = block.weight
            weight = quantise(dense.float(), torch.int8).kept(torch.bfloat16)
            block.weight = nn.Parameter(weight, requires_grad=False)
        apply_group_offloading(
            network,
            onload_device=torch.device("cuda"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
            low_cpu_mem_usage=low_memory,
        )
        x = torch.ones(1, 16, dtype=torch.bfloat16, device="cuda")
        if low_memory:
            with pytest.raises(RuntimeError, match=r"cannot pin 'torch\.cuda\.CharTensor' only dense CPU tensors"):
                thrice(network, x)
        else:
            assert thrice(network, x).shape == x.shape


# --- the rules of faults, on rows made by hand ------------------------------------------------------------------------

GB = 10**9


@pytest.fixture(scope="module")
def seen() -> Walk:
    """A walk of the packaged model in which nothing was seen, to put rows into."""
    from engine.assembly.compose import compose

    return Walk(compose(list(SHORT)), cards()[0], ONE, memory="none", weights={"transformer": 20 * GB})


def row(stage: str = "denoise", *, forward: ForwardCounts | None = None, **counts: Any) -> StageRow:
    made = Counts()
    for name, value in counts.items():
        getattr(made, name).update(value)
    return StageRow(stage, 1, made, [] if forward is None else [forward])


def copied(direction: str, size: int, **changed: Any) -> dict[str, Any]:
    copy = Copy(direction, "pinned", blocks=False, forward=True, where="engine/loading/streamer.py:1 fill")
    copy = copy._replace(**changed)
    return {"copies": {copy: 1}, "copied": {copy: size}}


FORWARD = ForwardCounts(launches=1, moved=1, flops=1, copies=1, up=20 * GB, down=0, waits=0, reads=0)


@pytest.mark.parametrize(
    ("memory", "given", "kind"),
    [
        # Offloaded blocks come once a forward, from pinned memory, and nobody waits.
        ("group-offload", row(forward=FORWARD, **copied("up", 20 * GB)), None),
        ("group-offload", row(forward=FORWARD._replace(up=25 * GB), **copied("up", 25 * GB)), "copies"),
        ("group-offload", row(forward=FORWARD, **copied("up", 20 * GB, memory="pageable")), "copies"),
        ("group-offload", row(forward=FORWARD, **copied("up", 20 * GB, blocks=True)), "copies"),
        ("group-offload", row(forward=FORWARD, **copied("down", GB)), "copies"),
        # With everything on the device nothing comes inside of a forward.
        ("none", row(forward=FORWARD, **copied("up", 1)), "copies"),
        ("none", row(forward=FORWARD, **copied("up", GB, forward=False)), None),
        # What is decoded goes down.
        (
            "none",
            row("vae decode", **copied("down", GB, where="engine/stages/decode.py:9 decode", forward=False)),
            None,
        ),
        (
            "none",
            row("vae decode", **copied("down", GB, where="engine/loading/mover.py:9 go", forward=False)),
            "copies",
        ),
        # Nobody waits inside of a forward; outside of one it may be.
        ("none", row(forward=FORWARD, forward_waits={"engine/network/attention.py:9 call": 1}), "waits"),
        ("none", row(forward=FORWARD, waits={"engine/stages/denoise.py:9 denoise": 1}), None),
        ("none", row(forward=FORWARD, reads={"engine/stages/denoise.py:9 denoise": 1}), "waits"),
    ],
)
def test_a_row_is_a_fault_or_none(seen: Walk, memory: str, given: StageRow, kind: str | None) -> None:
    report = make_report(replace(seen, memory=memory, rows=[given]), sizes_of(seen))
    assert kinds(report) == ({kind} if kind else set()), [str(fault) for fault in report.faults]


def test_errors_races_and_missing_memory_are_faults(seen: Walk) -> None:
    broken = replace(
        seen, error="ValueError: no", error_where="engine/x.py:1 f", races={"engine/y.py:2 g: late": 3}, missing=GB
    )
    report = make_report(broken, sizes_of(seen))
    assert [(fault.kind, fault.what) for fault in report.faults] == [
        ("error", "ValueError: no at engine/x.py:1 f"),
        ("order", "3 x engine/y.py:2 g: late"),
        ("memory", "the card is too small by 1.00 GB, with what its allocator holds"),
    ]
    assert not report.fits


# --- fewer blocks -----------------------------------------------------------------------------------------------------


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Yield what two reports do not have in common."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            yield from differences(one.get(key), other.get(key), f"{path}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, parts in enumerate(zip(one, other, strict=True)):
            yield from differences(*parts, f"{path}/{index}")
    elif path.endswith("/copies") and one is None:
        # Not extrapolated: blocks are copied in pieces.
        return
    elif path.endswith("/host_peak") and abs(one - other) < 100:
        # The first run of a process has 16 bytes more.
        return
    elif one != other and not (isinstance(one, float) and one == pytest.approx(other, rel=1e-9)):
        yield f"{path}: {one} and {other}"


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["none", "group-offload"])
def test_numbers_of_all_blocks_are_those_that_two_runs_give(memory: str, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL), "utf-8")
    overrides = ("model=multitalk", f"model.architecture={tmp_path / 'small'}", *SHORT[1:-1], f"memory={memory}")
    # With 7 the blocks of this small model fill more than one piece of pinned memory, and some need two copies.
    fewer, more, all_of_them = (report_of(overrides, replace(ONE, blocks=count)) for count in (4, 5, 6))
    reckoned = reckon(fewer, more, 6)
    assert reckoned.reckoned == "run with 4 and 5 blocks, reckoned for 6"

    def numbers(report: Report) -> dict[str, Any]:
        # What the allocator holds is no sum; a plan rounds; and seconds are this machine's.
        left_out = {"held", "plan", "host_plan", "off", "seconds", "reckoned", "faults"}
        stages = [{key: value for key, value in stage.items() if key not in left_out} for stage in report.stages]
        return {key: value for key, value in report.as_json().items() if key not in left_out} | {"stages": stages}

    assert list(differences(numbers(reckoned), numbers(all_of_them))) == []
    assert kinds(reckoned) == kinds(all_of_them) == set()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--card", "GTX 970"), ("--card", "no card named 'GTX 970'", "L4 24 GB")),
        (("--blocks", "3", "recipe=card-24gb"), ("--blocks", "3 blocks are too few", "give 4 or more")),
        (("--blocks", "4"), ("--blocks", "the packaged model always runs with all of its blocks", "leave it out")),
        (("--speakers", "4"), ("--speakers", "4 speakers", "1 to 3")),
        (("--speakers", "0"), ("--speakers", "0 speakers", "1 to 3")),
        (("--windows", "0"), ("--windows", "0 is too few", "1 or more")),
        (("--steps", "-1"), ("--steps", "-1 is too few", "0 or more")),
        (("dub.mode=keep",), ("dub", "a rehearsal has a picture and no source video")),
    ],
)
def test_what_cannot_be_rehearsed_is_said_in_one_line(
    words: tuple[str, ...], told: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = () if any(word.startswith("recipe=") for word in words) else ("model=tiny",)
    assert main(["rehearse", *overrides, *words]) not in (0, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in told), line


def test_the_card_is_that_of_the_recipes_name() -> None:
    assert default_card(["recipe=card-24gb"]).name == "L4 24 GB"
    assert default_card(["recipe=card-48gb"]).memory == min(card.memory for card in cards() if "48 GB" in card.name)
    assert default_card(["model=tiny"]).name == "H200 141 GB"

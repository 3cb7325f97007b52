"""LongCat's families through the engine: whole videos of a small random model, and what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from longcat_folder import write_longcat
from longcat_presets import store_presets
from PIL import Image
from segments import decoded

from engine import Delivery, EngineService, Progress, Request, Speaker
from engine.cli.main import main
from engine.data import Preview
from engine.data.timeline import Cue
from engine.errors import ConfigError, RequestError, SourceError
from engine.stages.write import read_provenance
from plugins.families.longcat import model, walk
from plugins.families.longcat.canvas import BUCKETS
from plugins.families.longcat.text import NEGATIVE_PROMPT

EXAMPLES = files("engine") / "examples"
#: Two windows, of 13 and of 8 new frames.
TWO = Request(
    prompt="two face a person",
    image=str(EXAMPLES / "two.png"),
    speakers=(Speaker(str(EXAMPLES / "left.flac")), Speaker(str(EXAMPLES / "right.flac"))),
    frames=21,
)
ONE = replace(TWO, image=str(EXAMPLES / "one.png"), speakers=(Speaker(str(EXAMPLES / "one.flac")),))


class Killed(BaseException):
    """Stands for a process that ends."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store_presets()
    root = tmp_path_factory.mktemp("models")
    write_longcat(root / "longcat-1.5", "1.5", together=True)
    write_longcat(root / "longcat-1.0", "1.0", together=True)
    return root


def boot(root: Path, folder: Path, model: str, *words: str) -> EngineService:
    source = (f"model={model}", "source=volume", f"source.path={root}", f"sink.folder={folder}")
    return EngineService([*source, *words])


@pytest.fixture
def start(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EngineService]]:
    started: list[EngineService] = []

    def start(model: str, *words: str) -> EngineService:
        started.append(boot(root, tmp_path_factory.mktemp("videos"), model, *words))
        return started[-1]

    yield start
    for service in started:
        service.close()


@pytest.fixture(scope="module")
def service(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineService]:
    service = boot(root, tmp_path_factory.mktemp("videos"), "longcat-mini")
    yield service
    service.close()


@pytest.fixture(scope="module")
def plain(service: EngineService) -> Delivery:
    return service.generate(TWO)


def digest(delivery: Delivery) -> str:
    return hashlib.sha256(Path(str(delivery.address)).read_bytes()).hexdigest()


def pixels(delivery: Delivery) -> Any:
    import av

    with av.open(str(delivery.address)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float32)


def network(service: EngineService) -> Any:
    engine = service._engine
    assert engine is not None
    assert engine._weights.loaded is not None
    return dict(engine._weights.loaded.model.modules())["transformer"]


def test_two_speakers_talk_in_two_windows_and_a_seed_gives_the_same_bytes(
    service: EngineService, plain: Delivery
) -> None:
    again, other = service.generate(TWO), service.generate(replace(TWO, seed=7))

    assert plain.frames == 21
    assert [window.keep for window in plain.plan.windows] == [13, 8]
    # The distillation's eight steps, without guidance.
    assert plain.forwards == plain.plan.forwards == 16
    assert [use.file for use in plain.plan.loras] == ["dmd_lora.safetensors"]
    assert digest(again) == digest(plain)
    assert digest(other) != digest(plain)
    provenance = read_provenance(Path(str(plain.address)))
    assert provenance["model"] == "longcat-mini"


def test_another_voice_or_place_of_a_speaker_changes_the_video(service: EngineService, plain: Delivery) -> None:
    one, two = TWO.speakers
    swapped = service.generate(replace(TWO, speakers=(replace(one, audio=two.audio), replace(two, audio=one.audio))))
    alone = service.generate(ONE)

    # The picture stays: a swap of the voices changes less than another picture.
    assert 0 < np.abs(pixels(swapped) - pixels(plain)).mean() < np.abs(pixels(alone) - pixels(plain)).mean()


@pytest.mark.parametrize(
    "words",
    [
        ("memory=text-offload",),
        ("memory=model-offload",),
        ("memory=group-offload",),
        ("memory=lowest",),
        ("memory=auto", "reader=ahead"),
    ],
)
def test_every_memory_profile_gives_the_same_bytes(
    start: Callable[..., EngineService], plain: Delivery, words: tuple[str, ...]
) -> None:
    assert digest(start("longcat-mini", *words).generate(TWO)) == digest(plain)


def test_the_published_int8_file_stays_in_8_bits(start: Callable[..., EngineService], plain: Delivery) -> None:
    service = start("longcat-mini", "quant=int8-longcat")
    delivery = service.generate(TWO)

    layer = network(service).blocks[0].cross_attn.q_linear
    assert layer.weight.qdata.dtype.itemsize == 1
    assert 0 < np.abs(pixels(delivery) - pixels(plain)).mean() < 20


def test_weights_are_quantised_while_they_are_loaded(start: Callable[..., EngineService], plain: Delivery) -> None:
    service = start("longcat-mini", "quant=int8")

    assert 0 < np.abs(pixels(service.generate(TWO)) - pixels(plain)).mean() < 20
    modulation = network(service).blocks[0].adaLN_modulation[1]
    assert modulation.weight.is_floating_point()


def test_the_distillation_can_be_merged_made_weaker_and_left_out(
    start: Callable[..., EngineService], plain: Delivery
) -> None:
    merged = start("longcat-mini", "lora.mode=merged").generate(TWO)
    weak = start("longcat-mini", "model.standard.loras=[{file:lora/dmd_lora.safetensors,scale:0.3}]").generate(TWO)
    without = start("longcat-mini", "model.standard.loras=[]").generate(TWO)

    far = np.abs(pixels(without) - pixels(plain)).mean()
    assert np.abs(pixels(merged) - pixels(plain)).mean() < 0.2 * far
    assert np.abs(pixels(weak) - pixels(without)).mean() < far


def test_a_lora_of_another_network_is_refused_before_the_weights_are_read(
    start: Callable[..., EngineService], root: Path
) -> None:
    for folder, words in (("longcat-1.5", ()), ("longcat-1.5", ("lora.mode=merged",))):
        service = start("longcat-mini", *words, "lora.extra=[{file:vae/diffusion_pytorch_model.safetensors}]")
        with pytest.raises(SourceError) as caught:
            service.generate(TWO)
        assert caught.value.field == "lora"
        assert "no key that begins with lora___lorahyphen___" in str(caught.value)
        assert (root / folder).is_dir()


@pytest.mark.parametrize("window", [1, 2])
def test_a_killed_job_continues_with_its_next_window_and_has_the_same_bytes(
    start: Callable[..., EngineService], plain: Delivery, tmp_path: Path, window: int
) -> None:
    def stop(progress: Progress) -> None:
        main = threading.current_thread() is threading.main_thread()
        if progress.window == window and progress.step == 2 and main:
            raise Killed

    states = f"resume.folder={tmp_path / 'states'}"
    with pytest.raises(Killed):
        start("longcat-mini", states).generate(TWO, progress=stop)
    denoised: set[int] = set()

    def note(now: Progress) -> None:
        if now.stage == "denoise":
            denoised.add(now.window)

    delivery = start("longcat-mini", states).generate(TWO, progress=note)

    assert digest(delivery) == digest(plain)
    assert delivery.forwards == 16
    assert denoised == set(range(window, 3))


def test_a_killed_job_of_version_1_0_continues_from_its_latents(
    start: Callable[..., EngineService], tmp_path: Path
) -> None:
    """Its windows carry latents, pixels and the first window's reference."""

    def stop(progress: Progress) -> None:
        if progress.window == 2 and progress.step == 1 and threading.current_thread() is threading.main_thread():
            raise Killed

    few = ("sampler.steps=2", f"resume.folder={tmp_path / 'states'}")
    whole = start("longcat-1.0-two-mini", *few[:1]).generate(TWO)
    with pytest.raises(Killed):
        start("longcat-1.0-two-mini", *few).generate(TWO, progress=stop)

    assert digest(start("longcat-1.0-two-mini", *few).generate(TWO)) == digest(whole)


def test_version_1_0_has_more_steps_in_windows_that_continue(start: Callable[..., EngineService]) -> None:
    steps: list[tuple[int, int, int]] = []
    delivery = start("longcat-1.0-mini", "sampler.steps=3").generate(
        ONE, progress=lambda now: steps.append((now.window, now.step, now.steps))
    )

    # 3 steps in the first window; two of them are above 0.5, and ten follow. Three passes each.
    assert delivery.plan.forwards == delivery.forwards == 3 * (3 + 2 + 10)
    assert max(step for window, step, _ in steps if window == 1) == 3
    last = max(step for window, step, _ in steps if window == 2)
    assert last > 10
    assert {total for window, step, total in steps if window == 2 and step} == {last}


@pytest.mark.parametrize(
    "words",
    [
        ("guidance.audio_scale=3",),
        ("guidance=cfg", "guidance.text_scale=2", "guidance.audio_scale=3"),
        ("guidance=cfg", "guidance.audio_scale=3", "guidance.until=0.5"),
        pytest.param(("guidance.audio_scale=3", "guidance.batched=true"), marks=pytest.mark.slow),
        pytest.param(("guidance=apg", "guidance.text_scale=2"), marks=pytest.mark.slow),
    ],
)
def test_it_can_be_guided(start: Callable[..., EngineService], plain: Delivery, words: tuple[str, ...]) -> None:
    delivery = start("longcat-mini", *words).generate(TWO)

    assert delivery.forwards == delivery.plan.forwards > 16
    assert digest(delivery) != digest(plain)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc", "renoise"])
def test_it_runs_with_every_solver(start: Callable[..., EngineService], sampler: str) -> None:
    words = (f"sampler={sampler}", "sampler.steps=2", "guidance.text_scale=1", "guidance.audio_scale=1")
    delivery = start("longcat-guided-mini", *words).generate(TWO)

    assert delivery.frames == 21
    assert delivery.forwards == delivery.plan.forwards


def test_keys_of_given_frames_change_the_video_only_by_rounding(
    start: Callable[..., EngineService], plain: Delivery
) -> None:
    without = start("longcat-mini", "family.keep_keys=false").generate(TWO)

    assert np.abs(pixels(without) - pixels(plain)).mean() < 0.5


@pytest.mark.slow
def test_times_colours_and_the_picture_s_place_can_be_chosen(
    start: Callable[..., EngineService], plain: Delivery
) -> None:
    for word in (
        "family.rounded_times=true",
        "family.reference_position=30",
        "continuation.color_strength=1",
    ):
        assert digest(start("longcat-mini", word).generate(TWO)) != digest(plain), word


@pytest.mark.slow
def test_new_frames_near_the_picture_s_place_do_not_see_it(start: Callable[..., EngineService]) -> None:
    words = ("model.window=21", "family.reference_position=4")
    hidden, seen = (
        start("longcat-mini", *words, f"family.hidden_range={most}").generate(replace(ONE, frames=37))
        for most in (1, 0)
    )

    difference = np.abs(pixels(hidden) - pixels(seen)).mean((1, 2, 3))
    assert difference[:21].max() < 1 < difference[21:].max()


def test_windows_go_out_while_later_ones_are_made_and_steps_are_shown(service: EngineService, plain: Delivery) -> None:
    previews: list[Preview] = []

    def note(now: Progress) -> None:
        if now.preview is not None and now.preview not in previews:
            previews.append(now.preview)

    delivery = service.generate(replace(TWO, live=True, preview="step"), progress=note)

    assert digest(delivery) == digest(plain)
    assert decoded(str(delivery.live))[0] == decoded(str(plain.address))[0]
    assert {one.window for one in previews} == {1, 2}
    assert {one.step for one in previews} == set(range(9))
    assert np.asarray(Image.open(io.BytesIO(previews[0].content))).ndim == 3


def test_a_window_outside_the_limits_is_made_again(start: Callable[..., EngineService], plain: Delivery) -> None:
    words = ("retake.max=1", "report.seam=null", "report.blank=null", "report.noise=0.0")
    delivery = start("longcat-mini", *words).generate(TWO)

    # Noise in the place of a person is over every limit.
    assert delivery.report is not None
    assert plain.report is not None
    assert delivery.forwards == 32


def test_a_prompt_by_time_reaches_its_window(start: Callable[..., EngineService]) -> None:
    texts = (Cue("two face a person", frame=0), Cue("still bright", frame=13))
    # A random network hardly hears texts.
    guided = start("longcat-mini", "guidance.text_scale=30")
    said, plain = guided.generate(replace(TWO, prompt="", prompts=texts)), guided.generate(TWO)

    assert [cue.window for cue in said.plan.prompts] == [0, 1]
    difference = np.abs(pixels(said) - pixels(plain)).mean((1, 2, 3))
    assert difference[:13].max() == 0
    assert difference[13:].mean() > 1


def test_a_picture_by_time_is_the_reference_from_its_window_on(
    service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    references: list[Any] = []

    def spy(network: Any, begun: Any, *arguments: Any, **options: Any) -> Any:
        references.append(begun.given[:, 0].cpu().numpy())
        return walk.denoise_window(network, begun, *arguments, **options)

    monkeypatch.setattr(model, "denoise_window", spy)
    pictures = tuple(Cue(str(EXAMPLES / name), frame=at) for name, at in (("two.png", 0), ("one.png", 13)))
    service.generate(replace(ONE, image="", images=pictures, frames=29))
    service.generate(replace(ONE, frames=13))

    first, second, third, other = references
    assert np.array_equal(second, other)
    assert np.array_equal(third, other)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("cache=firstblock",), "cache"),
        (("parallel=ulysses",), "parallel"),
        (("compile=blocks",), "compile"),
        (("attention=radial",), "attention"),
        (("quant=gguf",), "quant"),
        (("quant=int8-dynamic",), "quant"),
        (("continuation.style=multitalk",), "continuation.style"),
        (("family=multitalk",), "continuation.style"),
        (("sampler.steps=4",), "sampler.steps"),
        (("sampler=euler",), "sampler"),
    ],
)
def test_a_plan_refuses_what_the_network_cannot_do(
    start: Callable[..., EngineService], words: tuple[str, ...], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        start("longcat-mini", *words).plan(TWO)

    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_version_1_0_takes_as_many_speakers_as_its_network(start: Callable[..., EngineService]) -> None:
    with pytest.raises(RequestError) as caught:
        start("longcat-1.0-mini").plan(TWO)
    assert caught.value.field == "request.speakers"
    assert start("longcat-1.0-two-mini").plan(TWO).forwards > 0


def test_missing_and_mixed_files_are_named(start: Callable[..., EngineService], root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root / "longcat-1.5", tmp_path / "longcat-1.5")
    (tmp_path / "longcat-1.5" / "whisper-large-v3" / "model.safetensors").unlink()
    with pytest.raises(SourceError) as caught:
        start("longcat-mini", f"source.path={tmp_path}").generate(TWO)
    assert "whisper-large-v3/model.safetensors" in "\n".join(caught.value.lines())

    shutil.copytree(root / "longcat-1.5", tmp_path / "mixed" / "longcat-1.0")
    for name, source in (("avatar_multi", "base_model"), ("chinese-wav2vec2-base", None)):
        below = root / "longcat-1.5" / source if source else root / "longcat-1.0" / name
        shutil.copytree(below, tmp_path / "mixed" / "longcat-1.0" / name)
    with pytest.raises(SourceError) as caught:
        start("longcat-1.0-two-mini", f"source.path={tmp_path / 'mixed'}").generate(TWO)
    assert "audio_block" in str(caught.value)


def test_the_engine_s_own_layout_is_read_too(
    start: Callable[..., EngineService], root: Path, plain: Delivery, tmp_path: Path
) -> None:
    place, published = tmp_path / "longcat-1.5", root / "longcat-1.5"
    names = {"transformer": "base_model", "audio_encoder": "whisper-large-v3"}
    place.mkdir()
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder", "lora"):
        (place / part).symlink_to(published / names.get(part, part))

    found = start("longcat-mini", f"source.path={tmp_path}").generate(TWO)
    # The files have other names, which the provenance in a video covers.
    assert np.array_equal(pixels(found), pixels(plain))


def test_the_command_line_generates_and_plans(
    root: Path, tmp_path: Path, plain: Delivery, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=longcat-mini", "source=volume", f"source.path={root}", f"sink.folder={tmp_path}"]
    asked = [f"--image={TWO.image}", *(f"--audio={speaker.audio}" for speaker in TWO.speakers), "--frames=21"]

    assert main(["plan", *asked, f"--prompt={TWO.prompt}", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["forwards"] == 16
    assert main(["generate", *asked, f"--prompt={TWO.prompt}", "--output=talk.mp4", *words]) == 0
    assert hashlib.sha256((tmp_path / "talk.mp4").read_bytes()).hexdigest() == digest(plain)


def test_presets_have_the_published_values() -> None:
    from engine.assembly.compose import compose

    published = compose(["model=longcat"])
    sizes = {name: one.buckets for name, one in published.model.resolutions.items()}
    assert sizes == {name: {key: list(size) for key, size in table.items()} for name, table in BUCKETS.items()}
    assert published.model.negative_prompt == NEGATIVE_PROMPT
    assert (published.model.window, published.continuation.frames, published.model.fps) == (93, 13, 25)
    assert (published.sampler.name, published.sampler.steps, published.sampler.shift) == ("longcat-distilled", 8, 7)
    first = compose(["model=longcat-1.0-two"])
    assert (first.family.name, first.model.fps, first.sampler.name, first.sampler.steps) == (
        "longcat-1.0",
        16,
        "longcat-tail",
        50,
    )
    assert (first.guidance.text_scale, first.guidance.audio_scale, first.sampler.shift) == (4, 4, 12)


def test_a_preset_chooses_its_family_and_what_is_typed_wins() -> None:
    from engine.assembly.compose import compose

    assert compose(["model=longcat"]).family.name == "longcat"
    assert compose(["model=longcat", "model=tiny"]).family.name == "multitalk"
    assert compose(["model=longcat", "guidance=apg"]).guidance.name == "apg"
    assert compose(["family=longcat-1.0", "model=longcat"]).family.name == "longcat-1.0"


def test_a_preset_without_its_family_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    import os
    import subprocess
    import sys

    environment = {**os.environ, "MULTITALK_DISABLED_PLUGINS": "multitalk-family-longcat"}
    words = ["plan", f"--image={TWO.image}", f"--audio={TWO.speakers[0].audio}", "--frames=21", "model=longcat"]
    done = subprocess.run(
        [sys.executable, "-m", "engine", *words], capture_output=True, text=True, env=environment, check=False
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "family" in line
    assert "longcat" in line
    assert "multitalk" in line

"""Prompts longer than the text encoder takes: which words are lost is said in plan and answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import EngineService, Request, Speaker
from engine.loading.component_files import ComponentFiles
from engine.loading.layout import part_in
from engine.loading.model import _load_tokenizer
from engine.loading.safetensors_reader import AheadReader
from engine.network.prompts import clean_prompt, lost_of_file, lost_words, surely_whole, tell_lost
from engine.network.text import TextEncoder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "engine" / "weights" / "tiny"
EXAMPLES = ROOT / "engine" / "examples"
CONFIG = TINY / "transformer" / "config.json"
LONG = "a person talks to the camera in a bright room, " * 12 + "wearing a purple hat"


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    part = ComponentFiles(part_in(TINY / "text_encoder", "text_encoder"), "text_encoder", torch.float32)
    return TextEncoder(_load_tokenizer(TINY / "tokenizer"), part.read(AheadReader(), "cpu"), 64)


def test_words_that_are_lost_have_no_effect_and_all_others_do(encoder: TextEncoder) -> None:
    lost = encoder.lost(LONG)

    assert lost.endswith("wearing a purple hat")
    kept = LONG.removesuffix(lost)
    assert kept + lost == LONG
    whole = encoder.encode(LONG)
    # What comes behind the cut changes nothing.
    assert torch.equal(encoder.encode(LONG + " and a dog"), whole)
    assert encoder.lost(LONG + " and a dog") == f"{lost} and a dog"
    # All that is kept fits.
    assert encoder.lost(kept) == ""
    first = lost.split()[0]
    assert encoder.encode(f"{kept}{first}").shape[1] >= 64


@pytest.mark.parametrize("prompt", ["", "a person talks", "x" * 62, "tall &amp; small"])
def test_nothing_is_lost_of_a_short_prompt(prompt: str, encoder: TextEncoder) -> None:
    assert encoder.lost(prompt) == ""
    assert lost_of_file(TINY / "tokenizer", CONFIG, prompt) == ("", 64)


@given(prompt=st.text(max_size=400))
def test_the_file_of_the_tokenizer_says_what_the_encoder_says(prompt: str) -> None:
    encoder = TextEncoder(_load_tokenizer(TINY / "tokenizer"), None, 64)

    lost, kept = lost_of_file(TINY / "tokenizer", CONFIG, prompt)

    assert (lost, kept) == (encoder.lost(prompt), 64)
    cleaned = clean_prompt(prompt)
    assert cleaned.endswith(lost)
    count = len(encoder.tokenizer(cleaned).input_ids)
    assert bool(lost) == (count > 64)
    if surely_whole(cleaned, 64):
        assert count <= 64


def test_a_word_that_is_cut_in_the_middle_is_lost_whole_and_writing_without_blanks_is_not() -> None:
    text = "one twothree four"
    offsets = [(0, 3), (3, 7), (7, 12), (12, 17), (0, 0)]
    assert lost_words(text, offsets, 3) == "twothree four"
    assert lost_words(text, offsets, 4) == "four"
    assert lost_words(text, offsets, 5) == ""

    chinese = "一个人在说话" * 20
    places = [(index, index + 1) for index in range(len(chinese))] + [(0, 0)]
    assert lost_words(chinese, places, 101) == chinese[100:]


def test_a_warning_shows_the_words_up_to_a_length() -> None:
    assert tell_lost("prompt", "purple hat", 64) == (
        "the prompt is longer than the text encoder takes (64 tokens): its last 2 words have no effect: 'purple hat'"
    )
    assert "its last 1 word has no effect" in tell_lost("prompt", "hat", 64)
    told = tell_lost("negative prompt", "word " * 1000, 512)
    assert len(told) < 450
    assert "1000 words" in told


def test_plan_and_answer_say_which_words_are_lost(tmp_path: Path) -> None:
    service = EngineService(["model=tiny", "device=cpu", "sampler.steps=1", f"sink.folder={tmp_path}"])
    voices = (Speaker(str(EXAMPLES / "one.flac")),)
    prompt = "a person talks to the camera in a bright room, " * 6 + "wearing a purple hat"
    picture, other = str(EXAMPLES / "one.png"), prompt.replace("purple", "green")
    request = Request(prompt, picture, voices, frames=1, negative_prompt=other)

    plan, delivery = service.plan(request), service.generate(request)

    told = [warning for warning in plan.warnings if "longer than the text encoder takes (64 tokens)" in warning]
    assert plan.warnings == delivery.warnings
    # tiny's guidance is over audio alone: the negative prompt has no say.
    (warning,) = told
    assert warning.startswith("the prompt is longer")
    assert warning.endswith("purple hat'")

    guided = EngineService(["model=tiny", "device=cpu", "guidance.text_scale=3"]).plan(request)
    negative = [warning for warning in guided.warnings if warning.startswith("the negative prompt is longer")]
    assert negative[0].endswith("green hat'")


def test_a_plan_that_counts_tokens_imports_no_torch() -> None:
    code = (
        "import sys; from engine import EngineService, Request, Speaker; "
        f"plan = EngineService(['model=tiny', 'device=cpu']).plan(Request({LONG!r}, {str(EXAMPLES / 'one.png')!r}, "
        f"(Speaker({str(EXAMPLES / 'one.flac')!r}),), frames=1)); "
        "assert any('no effect' in warning for warning in plan.warnings); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

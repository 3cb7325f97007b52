"""Every key of the config that decides the bytes of a video comes back from its provenance."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from example_request import EXAMPLES
from key_values import FREE, concrete, leaves, other, override, places

from engine.assembly.compose import compose
from engine.assembly.provenance import DECISIVE, JUDGING, Runtime, make_provenance
from engine.assembly.sampling import sampler_config
from engine.cli import provenance
from engine.cli.main import main
from engine.cli.provenance import load, provenance_overrides
from engine.cli.provenance_check import check_form
from engine.config import Config
from engine.config_keys.reference import keys
from engine.data import Media, Request, Speaker
from engine.plugin.manager import installed

PICTURE, VOICE = (EXAMPLES / name for name in ("one.png", "one.flac"))
REQUEST = Request("A woman speaks.", str(PICTURE), (Speaker(str(VOICE)),))
MEDIA = Media(Path(str(PICTURE)), (1, 1), (Path(str(VOICE)),), (1.0,), (None,), (None,))
RUNTIME = Runtime("cpu", "float32", "native", "float32", 1, 1, False)

#: Groups and keys that need not come back, with the reason, besides those in FREE.
NOT_STORED = {
    "regions": "the request has the boxes of found people",
    "attention": "`again` takes it from the command line, and warns of another one",
    "compile": "`again` takes it from the command line, and warns of another one",
    "parallel": "`again` runs in one process, and warns of a video made by several",
    "model.resolutions.small.shift": "`sampler.shift` comes back",
    "model.resolutions.small.teacache": "`cache` comes back",
    "model.resolutions.small.magcache": "`cache` comes back",
    "model.resolutions.small.buckets": "presets' to write; a test of its own has the entry that can be overridden",
}
#: Of `FREE`, keys that come back although two attempts at one video may differ in them.
RESTORED = ("memory.tile", "dtype")


def exempt(name: str) -> bool:
    """Say whether a key need not come back; a key of a list or table by the place before it."""
    return name not in RESTORED and bool(places(name) & (NOT_STORED.keys() | FREE.keys()))


def changed_words(choice: str, *, model: bool) -> list[str]:
    """Return overrides that change every key of the model, or every other key, that a config of `choice` has."""
    chosen = {word.partition("=")[0]: word for word in choice.split()}
    config = compose(choice.split())
    before = dict(leaves(asdict(config)))
    words = list(choice.split())
    for key in keys():
        wanted = not key.choice or chosen.get(key.choice.partition("=")[0]) == key.choice
        own = key.name.partition(".")[0]
        bundle = key.name.split(".")[1] if own == "model" and "." in key.name else ""
        if (
            key.group
            or key.name.endswith(".name")
            or not wanted
            or (own == "model") is not model
            or exempt(concrete(key))
        ):
            continue
        if bundle in ("standard", "turbo", "distilled") and bundle != config.sampler.bundle:
            continue
        if key.name == "resolution":
            words.append(f"resolution={list(config.model.resolutions)[-1]}")
        elif own in (*DECISIVE, *JUDGING, "model", "windows", "residual_dtype", "dtype", "memory"):
            words.append(override(key, other(key, before.get(concrete(key)))))
    return words


def restored(config: Config, request: Request = REQUEST) -> Config:
    stored = make_provenance(request, MEDIA, config, weights="0", runtime=RUNTIME)
    # The runtime resolves it.
    stored["dtype"] = config.dtype
    check_form(stored)
    return compose(provenance_overrides(stored, request))


def lost(config: Config) -> set[str]:
    """Return the keys that do not come back from the provenance of a video made with `config`."""
    # Other solvers than Euler have none of the keys that only Euler's presets have.
    both = (replace(each, sampler=sampler_config(each, installed())) for each in (config, restored(config)))
    then, now = (dict(leaves(asdict(each))) for each in both)
    names = {name for name in then.keys() | now.keys() if then.get(name, ...) != now.get(name, ...)}
    return {name for name in names if not exempt(name)}


CHOICES = (
    *("", "sampler=turbo", "model=multitalk sampler=distilled", "model=infinitetalk", "model=tiny-flashtalk"),
    *sorted({key.choice for key in keys() if key.choice.partition("=")[0] in DECISIVE}),
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_that_decides_bytes_comes_back(choice: str) -> None:
    if choice == "" or "model" in choice or choice == "sampler=turbo":
        words = changed_words(choice, model=True)
        assert {word.partition("=")[0] for word in words} >= {"model.window", "model.fps", "model.negative_prompt"}
        assert lost(compose(words)) == set(), (
            "store it (engine/assembly/model_settings.py), or say why not (NOT_STORED)"
        )
    words = changed_words(choice, model=False)
    assert len(words) > 20
    assert lost(compose(words)) == set(), "store it (engine/assembly/provenance.py), or say why not (NOT_STORED)"


def test_every_exception_is_a_key_and_none_comes_back_by_itself() -> None:
    names = {concrete(key) for key in keys()} | {concrete(key).partition("[]")[0] for key in keys()}
    assert {name for name in NOT_STORED if name not in names} == set()


def test_resolved_values_of_a_model_come_back_where_they_act() -> None:
    words = ["model.standard.steps=3", "model.resolutions.small.shift=4", "model.continuation.style=multitalk"]
    words += ["model.continuation.blend=1", "model.report.seam=2.5", "model.standard.text_scale=1.5"]
    then = compose(["cache=teacache", *words, "model.resolutions.small.teacache=[1.5,2]"])
    now = restored(then)
    for group in ("sampler", "guidance", "continuation", "report", "cache"):
        assert getattr(now, group) == getattr(then, group)


def test_a_size_that_was_added_comes_back() -> None:
    config = compose(["+model.resolutions.small.buckets.2=[64,128]"])
    assert restored(config).model.resolutions["small"].buckets["2"] == [64, 128]


def test_a_solver_with_other_keys_than_eulers_comes_back() -> None:
    config = restored(compose(["model=tiny-flashtalk", "sampler=turbo"]))
    assert (config.sampler.name, config.sampler.bundle, config.sampler.steps) == ("renoise", "turbo", 4)


def test_a_preset_that_has_changed_since_is_told(film: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    stored = load(film)
    settings = {**stored["model_settings"], "buckets": {"0.60": [32, 64]}}
    monkeypatch.setattr(provenance, "load", lambda path: {**stored, "model_settings": settings})
    assert again(film, "--dry-run") == 0
    told = capsys.readouterr().err
    assert 'its model.resolutions.small.buckets was {"0.60": [32, 64]}, and the preset model=tiny has {' in told


#: Two windows: 5 frames, then 4 more.
OTHERWISE = ("model.window=5", "model.continuation.frames=1", "model.continuation.blend=2", "model.fps=20")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    words = ["--image", str(PICTURE), "--audio", str(VOICE), "--prompt", "a", "--frames", "9", "--quiet"]
    words += ["sampler=turbo", "sampler.steps=1", f"resume.folder={folder / 'states'}", "resume.keep=true"]
    assert main(["generate", *words, *OTHERWISE, "--output", str(folder / "talk.mp4")]) == 0
    return folder / "talk.mp4"


def again(film: Path, *words: str, command: str = "again") -> int:
    (film.parent / "again.mp4").unlink(missing_ok=True)
    media = ("--image", str(PICTURE), "--audio", str(VOICE), "--quiet")
    return main([command, str(film), *media, "--output", str(film.parent / "again.mp4"), *words])


def test_a_video_with_other_windows_is_made_again_with_the_same_bytes(film: Path) -> None:
    assert load(film)["judged"]["windows"] == 2
    assert again(film) == 0
    assert (film.parent / "again.mp4").read_bytes() == film.read_bytes()


def test_a_window_of_a_video_with_other_windows_is_made_again_from_its_states(film: Path) -> None:
    states = f"resume.folder={film.parent / 'states'}"
    assert again(film, "--window", "2", "--seed", "3", states, command="retake") == 0
    assert load(film.parent / "again.mp4")["made_again"] == [{"window": 2, "seed": 3}]


@pytest.mark.parametrize("word", ["model.window=13", "windows=pauses", "vae.decode_dtype=bfloat16", "memory.tile=64"])
def test_what_the_provenance_decides_is_refused_on_the_command_line(film: Path, word: str, capsys: Any) -> None:
    assert again(film, word) == 2
    assert f"{word!r} would change what the provenance says" in capsys.readouterr().err


def test_the_folder_of_the_weights_may_be_named(film: Path, capsys: Any) -> None:
    assert again(film, "model.folder=tiny", "--dry-run") == 0


def test_a_file_without_the_model_s_keys_whose_windows_contradict_the_plan_says_so(
    film: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    old = {key: value for key, value in load(film).items() if key != "model_settings"}
    monkeypatch.setattr(provenance, "load", lambda path: old)
    # The motion frames are stored without the model's keys, too.
    assert again(film, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "it has 2 windows, and its settings plan 1: it was made with keys such as model.window" in told


@pytest.mark.parametrize(
    "settings",
    [{"command": "x"}, {"loras": [{"file": 1}]}, {"buckets": {"1": "x"}}, {"window": None}, {"window": {"a": 1}}, []],
)
def test_damaged_settings_of_a_model_are_one_line(
    film: Path, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    damaged = {**load(film), "model_settings": settings}
    monkeypatch.setattr(provenance, "load", lambda path: damaged)
    assert again(film, "--dry-run") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "is damaged" in told[0]
    assert "model_settings" in told[0]

"""A request's overrides give the config that Hydra would compose, without Hydra's work for each job."""

from __future__ import annotations

import itertools
import time

import pytest

from engine.compose import compose, compose_request
from engine.errors import ConfigError, RequestError

BOOTS = (
    ("model=tiny", "sink=disk"),
    ("model=tiny", "sampler=turbo", "sampler.steps=7", "resolution=large"),
    ("model=multitalk", "recipe=card-24gb"),
)
CHANGES = (
    ("sampler=turbo",),
    ("sampler=unipc",),
    ("sampler.steps=3",),
    ("sampler.steps=3", "sampler=turbo"),
    ("sampler=turbo", "sampler.steps=3", "sampler.steps=4"),
    ("guidance=apg", "guidance.text_scale=2"),
    ("guidance.text_scale=2.5", "guidance.audio_scale=1"),
    ("cache=teacache", "cache.threshold=0.3"),
    ("cache=none",),
    ("continuation.style=infinitetalk", "continuation.frames=9"),
    ("continuation.blend=0",),
    ("continuation.color_strength=0.25",),
)


@pytest.mark.parametrize("boot", BOOTS, ids=" ".join)
@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_it_is_what_hydra_composes(boot: tuple[str, ...], change: tuple[str, ...]) -> None:
    wanted = compose([*boot, *change])

    assert compose_request(boot, change) == wanted
    # Of what was kept, too.
    assert compose_request(boot, change) == wanted


def test_pairs_of_changes_are_what_hydra_composes() -> None:
    boot = BOOTS[0]
    for first, second in itertools.islice(itertools.combinations(CHANGES, 2), 0, None, 5):
        change = [*first, *second]
        try:
            wanted = compose([*boot, *change])
        except ConfigError:
            # The second takes away the keys that the first sets.
            with pytest.raises(RequestError):
                compose_request(boot, change)
        else:
            assert compose_request(boot, change) == wanted, change


def test_a_resolution_brings_what_depends_on_it() -> None:
    boot = BOOTS[2]
    for name in ("480p", "720p"):
        assert compose_request(boot, [f"resolution={name}"]) == compose([*boot, f"resolution={name}"])


def test_no_two_requests_share_a_config() -> None:
    first = compose_request(BOOTS[0], ["sampler.steps=3"])
    first.model.resolutions.clear()
    first.sampler.steps = 90

    assert compose_request(BOOTS[0], ["sampler.steps=3"]) == compose([*BOOTS[0], "sampler.steps=3"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["sampler.stepz=3"], "stepz"),
        (["sampler.steps=many"], "sampler.steps"),
        (["sampler=euler3"], "euler3"),
        (["resolution=8k"], "8k"),
        (["guidance.text_scale=true"], "text_scale"),
    ],
)
def test_what_hydra_refuses_is_refused_in_its_words(change: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        compose_request(BOOTS[0], change)


def test_a_job_takes_a_fraction_of_hydras_work() -> None:
    boot, change = BOOTS[0], ["sampler=turbo", "sampler.steps=4"]
    compose_request(boot, change)

    def spent(work: object) -> float:
        began = time.process_time()
        for number in range(5):
            work(number)  # type: ignore[operator]
        return time.process_time() - began

    merged = spent(lambda number: compose_request(boot, ["sampler=turbo", f"sampler.steps={5 + number}"]))
    composed = spent(lambda number: compose([*boot, "sampler=turbo", f"sampler.steps={5 + number}"]))
    assert merged < composed / 2

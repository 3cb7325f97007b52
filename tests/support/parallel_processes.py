"""What each process of tests/runtime/test_parallel.py does; torchrun starts it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ancestral import Ancestral, AncestralConfig
from recordings import TinyNetwork
from torch import Tensor

from engine import EngineError, EngineService, Progress, Request, Speaker, pipeline
from engine.cli import main
from engine.cli.run import follow
from engine.data import Conditions
from engine.errors import Cancelled
from engine.plugin.manager import installed
from engine.runtime.parallel import Ranks
from plugins.families.multitalk import model as family
from plugins.families.multitalk.model import MultiTalkModel

EXAMPLES = Path(pipeline.__file__).parent / "examples"
VOICES = {1: ("one.png", ("one.flac",)), 2: ("two.png", ("left.flac", "right.flac"))}
BOOT = ["model=tiny", "model.window=9", "continuation.frames=5", "device=cpu"]
#: Two windows, the second one with motion frames; the others are one.
LONG = 13
_TEACACHE = ["sampler.steps=5", "cache=teacache", "cache.warmup=2", "cache.threshold=0.9"]
#: Name -> persons, frames, and what the request overrides. A coarse threshold lets the cache skip within few steps.
CASES: dict[str, tuple[int, int, list[str]]] = {
    "standard, two persons, two windows": (2, LONG, ["sampler.steps=3"]),
    "standard, one person, three passes": (1, 9, ["sampler.steps=2", "guidance=apg", "guidance.text_scale=3"]),
    "teacache, one person": (1, 9, _TEACACHE),
    "teacache, two persons": (2, 9, _TEACACHE),
    "taylorseer, two persons": (2, 9, ["sampler.steps=5", "cache=taylorseer"]),
    "ancestral, two persons, two windows": (2, LONG, ["sampler=test-ancestral", "sampler.steps=3"]),
    "heun, one person": (1, 9, ["sampler=heun", "sampler.steps=2"]),
    "turbo, one person": (1, 9, ["sampler=turbo"]),
    "turbo, two persons": (2, 9, ["sampler=turbo"]),
}

#: The same with parallel=guidance: two processes share two and three passes, or both make the only one.
GUIDED: dict[str, tuple[int, int, list[str]]] = {
    "standard, two persons, two windows": CASES["standard, two persons, two windows"],
    "standard, one person, three passes": CASES["standard, one person, three passes"],
    "teacache, one person": CASES["teacache, one person"],
    "easycache and an interval": (
        1,
        9,
        ["sampler.steps=6", "guidance.until=0.7", "cache=easycache", "cache.warmup=2", "cache.threshold=0.5"],
    ),
}


class Watch:
    """Keeps what every window that this process denoised came to."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []
        #: Whether each branch was divided; a kept shard would hold the process group beyond its end.
        self.divided: list[bool] = []
        self.computed: list[bool] = []
        denoise: Any = vars(family)["denoise"]

        def watched(transformer: Any, conditions: Conditions, *args: Any, **kwargs: Any) -> Tensor:
            shards = [branch.shard for branch in conditions.branches.values()]
            self.divided += [shard is not None and shard.length < shard.total for shard in shards]
            latents: Tensor = denoise(transformer, conditions, *args, **kwargs)
            self.latents.append(latents)
            self.computed += getattr(kwargs["cache"], "computed", ())
            return latents

        setattr(family, "denoise", watched)  # noqa: B010 - the name is not exported

    def take(self) -> list[Tensor]:
        taken, self.latents = self.latents, []
        return taken


def request(people: int, frames: int, overrides: list[str]) -> Request:
    picture, voices = VOICES[people]
    speakers = tuple(Speaker(str(EXAMPLES / voice)) for voice in voices)
    return Request("talk", str(EXAMPLES / picture), speakers, frames=frames, overrides=tuple(overrides))


def forwards(ranks: Ranks) -> Iterator[tuple[str, float]]:
    """Yield by how much divided forwards of a random network differ from whole ones, for grids that do not divide."""
    for shape in ((3, 4, 8), (3, 2, 10), (5, 6, 6), (1, 2, 2)):
        for speakers in (1, 2, 3):
            network = TinyNetwork(latent_shape=shape)
            model, conditions = network.model(), network.conditions(speakers)
            latents = torch.randn(1, 36, *shape, generator=torch.Generator().manual_seed(5))
            with torch.no_grad():
                whole = model.embed_conditions(shape, **conditions)
                part = whole.split(ranks.group, ranks.rank, ranks.size)
                outputs = [model(latents, torch.tensor([500.0]), conditions=each).sample for each in (whole, part)]
            yield f"{shape}, {speakers}", float((outputs[0] - outputs[1]).abs().max())


def guided(ranks: Ranks, folder: Path, watch: Watch) -> dict[str, list[Tensor]]:
    """Make the cases of GUIDED with the processes of `ranks`; return the latents of this process."""
    service = EngineService([*BOOT, "parallel=guidance", f"sink.folder={folder / 'guided'}"])
    service._ranks = Ranks(ranks.rank, ranks.size, groups=ranks.size)
    latents = {}
    if ranks.rank:
        follow(service)
        latents["all"] = watch.take()
    else:
        for name, case in GUIDED.items():
            service.generate(request(*case))
            latents[name] = watch.take()
        service._ranks.broadcast(None)
    service.close()
    watch.divided.clear()
    watch.computed.clear()
    return latents


def compare(folder: Path) -> None:
    """Make every case in both processes and in one, and write by how much the latents differ."""
    installed().samplers(Ancestral, AncestralConfig)
    watch = Watch()
    report: dict[str, Any] = {}
    service = EngineService([*BOOT, "parallel=ulysses", f"sink.folder={folder / 'shared'}"])
    with service.joined() as led:
        ranks = service._ranks
        assert ranks is not None
        report["forwards"] = dict(forwards(ranks))
        passes = guided(ranks, folder, watch)
        if led:
            torch.save(passes["all"], folder / "guided.pt")
            follow(service)
            torch.save(watch.take(), folder / "followed.pt")
            return
        shared = {}
        for name, case in CASES.items():
            service.generate(request(*case))
            shared[name] = watch.take()
        report["parts"] = list(watch.divided)
        report["teacache"] = watch.computed
        cancel = threading.Event()

        def after_two_steps(progress: Progress) -> None:
            if progress.step == 2:
                cancel.set()

        try:
            service.generate(request(1, 9, []), cancel=cancel, progress=after_two_steps)
        except Cancelled as error:
            report["cancelled"] = str(error)
        again = "turbo, one person"
        service.generate(request(*CASES[again]))
        report["after"] = [torch.equal(*pair) for pair in zip(watch.take(), shared[again], strict=True)]
        try:
            service.generate(request(1, 9, ["cache=firstblock"]))
        except EngineError as error:
            report["firstblock"] = str(error)
    report["threads"] = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    alone = EngineService([*BOOT, f"sink.folder={folder / 'alone'}"])
    report["guided"] = {}
    for name, latents in passes.items():
        alone.generate(request(*GUIDED[name]))
        report["guided"][name] = [torch.equal(*pair) for pair in zip(latents, watch.take(), strict=True)]
    followed = torch.load(folder / "guided.pt")
    led_latents = [window for windows in passes.values() for window in windows]
    report["guided alike"] = [torch.equal(*pair) for pair in zip(led_latents, followed, strict=True)]
    report["loops"] = {}
    for name, latents in shared.items():
        alone.generate(request(*CASES[name]))
        pairs = zip(latents, watch.take(), strict=True)
        report["loops"][name] = [float((one - other).abs().max()) for one, other in pairs]
    torch.save([latents for windows in shared.values() for latents in windows], folder / "led.pt")
    (folder / "report.json").write_text(json.dumps(report))


def fail(words: list[str]) -> int:
    """Run a command line whose second process fails when its part of the work begins."""
    part_of = MultiTalkModel.part_of

    def failing(model: MultiTalkModel, begun: Any, group: Any, place: int, size: int) -> Any:
        if place == 1:
            raise EngineError("this device has caught fire")
        return part_of(model, begun, group, place, size)

    setattr(MultiTalkModel, "part_of", failing)  # noqa: B010
    return main.main(words)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(Path(sys.argv[2]))
    else:
        sys.exit(fail(sys.argv[2:]))

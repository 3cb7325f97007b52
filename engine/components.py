"""The component protocols that plugins implement, and the service protocol that entrypoints use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from engine.data import Artifact, Delivery, Kept, Plan, Progress, Request, Resumed, Store, Weights
from engine.data.cancel import CancelToken as CancelToken  # a part of this module's face

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ProgressCallback: TypeAlias = Callable[[Progress], None]
#: Returns the decision of one of the processes that share a forward, the same one's for all.
Agree: TypeAlias = Callable[[bool], bool]

#: What a guidance may run the network with. "cond": prompt and voices; "drop_text": negative prompt and voices;
#: "drop_audio": prompt and silence; "uncond": negative prompt and silence.
BRANCHES = ("cond", "drop_text", "drop_audio", "uncond")


class ModelSource(Protocol):
    """Where weights come from."""

    def locate(self, weights: Weights) -> Path | None:
        """Return a local folder that holds `weights`, or None where this source does not know them.

        Raises SourceError where the place is known and the weights in it are incomplete, naming each file.
        """
        ...

    def looked(self, weights: Weights) -> str:
        """Say in a few words where `locate` looks, for the error that nothing was found."""
        ...


@runtime_checkable
class FetchingSource(ModelSource, Protocol):
    """A source that can bring weights here before they are read."""

    def fetch(self, weights: Weights) -> Path | None:
        """Do as `locate`, and where nothing is found get the weights, if that is allowed.

        Asked only when they are about to be read, never for a plan. Raises SourceError where it does not succeed.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    file: Path
    #: As the file calls it.
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    #: Bytes from the file's start to the tensor, and of the tensor.
    offset: int
    size: int
    #: Whether it is wanted on the CPU just as it is stored: a reader may leave it in its file.
    stays: bool = False


class Reader(Protocol):
    """How tensors come from their files to memory."""

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """Yield each of the `wanted` tensors once, file by file, in the place that `into` returns for it.

        A place is contiguous, of the tensor's shape, of any dtype and on any device; the tensor is cast and moved. It
        is asked for shortly before it is filled, maybe by another thread. A tensor that `stays` may come as a private
        mapping of its file instead. Beside the places a reader holds a buffer of its own, no larger than a file. Raises
        SourceError for a file that ends too soon.
        """
        ...


class Quantiser(Protocol):
    """How the blocks' linear layers are quantised while dense weights are loaded; built without torch."""

    def check(self) -> None:
        """Raise MissingExtra where a package is absent; called before anything is read."""
        ...

    def cost(self) -> tuple[float, int]:
        """Return the bytes of a weight as it is kept, and of what belongs to an output row beside its weights."""
        ...

    def apply(self, transformer: Any, chosen: Callable[[Any, str], bool]) -> None:
        """Replace, in place on the CPU, the layers for which `chosen(module, name)` holds; LoRAs are merged before."""
        ...


class AttentionBackend(Protocol):
    """Which kernel computes the network's self-attention."""

    def resolve(self, device: str) -> str:
        """Return the name by which diffusers' attention dispatch knows the kernel, for "cuda" or "cpu".

        Raises MissingExtra where its package is absent and ConfigError where the device cannot run it.
        """
        ...


class Schedule(Protocol):
    """One walk from noise to latents: made anew for each window, since solvers keep state."""

    #: steps + 1 values on the network's 0 .. 1000 scale, falling, the last is 0.
    timesteps: Sequence[float]

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Go from timesteps[index] to timesteps[index + 1]; float32 in and out.

        `velocity` is the guided prediction of the direction noise - data.
        """
        ...


@dataclass(frozen=True)
class StepTools:
    """What a step of an `ExtendedSchedule` may use beside the velocity at its begin."""

    #: (latents, time) -> velocity: one more evaluation of the network, guided and cached as the step's first, with the
    #: motion frames of that time. Latents and velocity are as in `step`, the time is on the scale of 0 .. 1000. A
    #: sampler whose schedules use it is a `CountedSampler`.
    evaluate: Callable[[Tensor, float], Tensor]
    #: () -> fresh standard normal noise of the latents' shape, float32, on their device. It is drawn from the request's
    #: own generator, so that a seed gives the same video on every device and in each of several processes.
    noise: Callable[[], Tensor]


@runtime_checkable
class ExtendedSchedule(Protocol):
    """A schedule whose steps evaluate the network more than once, or draw fresh noise."""

    #: As of a `Schedule`.
    timesteps: Sequence[float]

    def step_with(self, velocity: Tensor, index: int, latents: Tensor, tools: StepTools) -> Tensor:
        """Do as `Schedule.step`."""
        ...


class Sampler(Protocol):
    """How noise becomes latents."""

    def schedule(self) -> Schedule | ExtendedSchedule:
        """Return a fresh schedule."""
        ...


@runtime_checkable
class CountedSampler(Sampler, Protocol):
    """A sampler that makes more than one evaluation of the network in some steps; others make one in each."""

    def evaluations(self) -> Sequence[int]:
        """Return how many evaluations each step makes, its first included: a number of 1 or more for each step.

        Plans count by it and ask without torch; a step that makes another number ends the generation.
        """
        ...


def evaluations_of(sampler: Sampler, steps: int) -> tuple[int, ...]:
    """Return how many evaluations of the network each of a sampler's `steps` makes."""
    return tuple(sampler.evaluations()) if isinstance(sampler, CountedSampler) else (1,) * steps


class Guidance(Protocol):
    """How several forwards become the sampler's velocity; built for each request, without torch: a plan counts it."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The forwards that each evaluation needs, of BRANCHES, in the order in which they run; at least one."""
        ...

    def reset(self) -> None:
        """Forget earlier evaluations; called before each window."""
        ...

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Mix one evaluation's predictions, float32 (16, T, h, w) for each of `branches`; called in their order."""
        ...


@dataclass(frozen=True)
class CacheCost:
    """What a step cache costs, for plans."""

    #: Bytes that it keeps on the device from one evaluation to the next, at its worst moment.
    kept: int = 0
    #: Values that it reads from the device in one evaluation to decide; each has the host wait.
    reads: int = 0


class StepCache(Protocol):
    """A cache over the forwards of one window: forwards whose blocks are replaced by what an earlier one gave.

    It is built without torch: a plan asks what it costs. The engine builds one for each request.
    """

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        """Work on `transformer` inside a `with`, from an empty state; leaves nothing behind, whatever happens."""
        ...

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        """Say which branch of the guidance and which evaluation (from 0) the forward inside a `with` belongs to.

        A sampler with one evaluation a step has as many evaluations as steps.
        """
        ...

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """Return what it costs in a network of `blocks` blocks with so many guidance branches.

        A forward's stream of all tokens is float32 (1, tokens, channels).
        """
        ...


@runtime_checkable
class SharedCache(StepCache, Protocol):
    """A step cache that works where several processes share each forward (parallel=ulysses); others are refused."""

    def shared(self, agree: Agree) -> StepCache:
        """Return the cache for one of the processes, each of which has a part of the tokens.

        What decides whether blocks are skipped goes through `agree`: a process that skips alone leaves the others
        waiting. Raises ConfigError where it cannot work.
        """
        ...


class Sink(Protocol):
    """Where a finished video is kept."""

    def put(self, artifact: Artifact) -> Kept:
        """Keep the artifact (its file is gone afterwards) and say where it is. Raises SinkError."""
        ...

    def check(self, filename: str | None) -> None:
        """Raise SinkError or RequestError before any work if `put` could not succeed."""
        ...


@runtime_checkable
class JobSink(Sink, Protocol):
    """A sink that tells jobs apart; the engine asks it for each request's own sink."""

    def for_job(self, job: str | None, store: Store | None, private_hosts: Collection[str]) -> Sink:
        """Return the sink for the request of that name, which may bring its own bucket. Raises RequestError.

        That bucket is held to the public internet and to `private_hosts`.
        """
        ...


@runtime_checkable
class BoundSink(Sink, Protocol):
    """A sink whose answer is as long as the video; the engine tells it what a request's answer may carry."""

    def within(self, limit: int) -> Sink:
        """Return the sink for an answer that carries at most `limit` bytes of the video's text."""
        ...


@runtime_checkable
class KeepingSink(Sink, Protocol):
    """A sink that keeps a video which it could not deliver until its job comes again."""

    def waiting(self, job: str) -> Artifact | None:
        """Return the video that waits under this name, None where none does. Raises SinkError."""
        ...

    def resume(self, job: str) -> Kept:
        """Deliver the video that waits under this name. Raises SinkError."""
        ...


@runtime_checkable
class PatientSink(Sink, Protocol):
    """A sink that may take long, as one on the network does; the engine gives it the request's cancel token."""

    def until(self, cancel: CancelToken) -> Sink:
        """Return the sink whose calls raise Cancelled within a second once `cancel` is set."""
        ...


@runtime_checkable
class RehearsingSink(Sink, Protocol):
    """A sink that can try out whether a video would arrive."""

    def rehearse(self) -> None:
        """Leave a small object where videos go, read it, and take it away again. Raises SinkError."""
        ...


@runtime_checkable
class Service(Protocol):
    """The engine as an entrypoint sees it."""

    @property
    def overrides(self) -> Sequence[str]:
        """What it was booted with, in Hydra's grammar, for an entrypoint that boots others alike."""
        ...

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        """Make the video; load the weights first if this has not happened yet. Raises EngineError."""
        ...

    def load(self) -> Mapping[str, float]:
        """Load the weights, if that has not happened yet; return the seconds of each part, as at the first time."""
        ...

    def resume(self, request: Request, *, cancel: CancelToken | None = None) -> Resumed | None:
        """Deliver the video that an earlier try of `request.job` left with its sink, None where none waits.

        Loads no weights and opens no media. Raises SinkError, RequestError and Cancelled.
        """
        ...

    def plan(self, request: Request, *, cancel: CancelToken | None = None) -> Plan:
        """Say what `generate` would do. Decodes the media as `generate` would; loads no weights. Raises EngineError."""
        ...

    def preview(self, request: Request, path: Path) -> Plan:
        """Draw the speakers' regions on the picture as the network will see it, as a PNG at `path`."""
        ...

    def capabilities(self) -> Mapping[str, Any]:
        """Say what this service was booted with and what a request may choose."""
        ...

    def check(self) -> Mapping[str, Any]:
        """Say how it stands with weights and sink, without loading weights.

        "failed" holds a line for each of the two that is not as it should be, by its name.
        """
        ...

    def open(self, overrides: Sequence[str], *, alone: bool = False) -> Service:
        """Return another service, booted with `overrides` after this one's own, or with them `alone`."""
        ...

    def close(self) -> None:
        """Release weights and device."""
        ...


class JobWorker(Protocol):
    """One engine of a batch, which does one job after the other; or its stand-in, where it is in another process."""

    def start(self) -> None:
        """Load the weights, in a new process if there is none.

        Raises the EngineError for which no job could be done, Cancelled after `stop`, and WorkerLost.
        """
        ...

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """Return the answer of a job (docs/api.md), an error's too; `tell` is called with its progress.

        An answer with `refresh_worker` asks for `close` and `start`. Raises WorkerLost, and then wants `start`.
        """
        ...

    def stop(self) -> None:
        """End what it does at its next check; may be called from another thread."""
        ...

    def close(self) -> None:
        """Release weights and device, and end the process; by force if it takes long."""
        ...


class Launcher(Protocol):
    """On which machines and devices the workers of a batch run."""

    def launch(self, make: Callable[[], JobWorker], most: int) -> AbstractContextManager[Sequence[JobWorker]]:
        """Return stand-ins for one worker a device, at most `most` of them; no process outlives the context.

        `make` is pickled, and called in the process of each worker when it starts.
        """
        ...


class Entrypoint(Protocol):
    """A way in which requests arrive."""

    def run(self, service: Service) -> int:
        """Take requests and answer each through `service` until done; return the process' exit status."""
        ...

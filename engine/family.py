"""The protocols of a model family: a kind of network, how it is loaded, and how it makes one window of a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from engine.components import Guidance, Sampler, StepCache
from engine.data import DecodeOptions, EncodeOptions, Frames, Inputs, Plan, Tally, Window
from engine.data.cancel import CancelToken

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

#: What a window hands to the next one: float32 tensors on the CPU by a name of the family's choice. The engine only
#: keeps them, also on disk, where a killed job continues.
Carried: TypeAlias = Mapping[str, "Tensor"]


@runtime_checkable
class ContinuingSampler(Sampler, Protocol):
    """A sampler with other steps in windows that continue another window."""

    def continued(self) -> tuple[Sampler, int]:
        """Return the sampler of those windows and its number of steps. Plans call this without torch."""
        ...


class SharedPasses(Protocol):
    """The guidance passes of one evaluation, shared by several processes."""

    def own(self, branches: Sequence[str]) -> Sequence[str | None]:
        """Return the passes of this process, at least one; None where it only waits, so that all have as many."""
        ...

    def gather(self, predictions: Mapping[str, Tensor], branches: Sequence[str]) -> dict[str, Tensor]:
        """Return the predictions of all `branches`, in their order, from those of this process."""
        ...


@dataclass(frozen=True)
class Denoising:
    """What a family's denoising loop is given beside conditions and noise."""

    sampler: Sampler
    guidance: Guidance
    cache: StepCache
    #: For noise in addition to the first; on the CPU.
    generator: torch.Generator
    #: The number of forwards is added to it.
    tally: Tally
    #: Once it is set, the loop raises Cancelled between guidance passes.
    cancel: CancelToken
    #: Called after each step with its number, from 1, and the number of steps.
    on_step: Callable[[int, int], None] | None = None
    #: Called in the middle of each step with its number, the latents at its start, the velocity (noise - data) there
    #: and their time, 0 .. 1000; for previews.
    look: Callable[[int, Tensor, Tensor, float], None] | None = None
    #: Called while the network is on the device, with a function that returns the temporary bytes of one forward of
    #: all passes: whether they run as one forward.
    batched: Callable[[Callable[[], int]], bool] = lambda _bytes: False
    #: Other processes compute some of the passes.
    shared: SharedPasses | None = None


class Finished(NamedTuple):
    """A window's new frames, and what it hands to the next window."""

    frames: Frames
    carried: Carried


class Prepared(Protocol):
    """What is encoded once per request: prompts, voices, pictures."""

    @property
    def reused(self) -> bool:
        """Whether all prompts were known from an earlier request, so that the text encoder did not run."""
        ...


class FamilyModel(Protocol):
    """The loaded weights of a family."""

    #: "cuda" or "cpu": where forwards run.
    device: str
    #: The memory profile in use.
    memory: str
    #: Why it was chosen, if the config said "auto"; else "".
    reason: str

    @property
    def prompt_limit(self) -> int:
        """Most tokens of a prompt."""
        ...

    def lost(self, prompt: str) -> str:
        """Return what of a prompt is beyond the limit."""
        ...

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have a component, by its name in the weights, on the device inside a `with`."""
        ...

    def modules(self) -> Iterator[tuple[str, Any]]:
        """Yield the networks that are in memory, by component."""
        ...

    def set_loras(self, active: Sequence[tuple[Path, float]]) -> None:
        """Switch exactly these LoRAs (file, scale) on. Raises RequestError for one that was not loaded."""
        ...

    def prepare(
        self,
        inputs: Inputs,
        prompts: tuple[Sequence[str], str],
        plan: Plan,
        options: EncodeOptions,
        *,
        cancel: CancelToken | None = None,
    ) -> Prepared:
        """Encode what all windows share. `prompts`: those of the request in the order of time, and the negative one.

        Raises Cancelled.
        """
        ...

    def begin(
        self,
        inputs: Inputs,
        window: Window,
        prepared: Any,
        options: EncodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Any:
        """Return the conditions of a window. `carried` comes from the window before; None: there is none.

        Raises Cancelled.
        """
        ...

    def shown(
        self, begun: Any, window: Window, prepared: Any, inputs: Inputs, carried: Carried | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return latents (channels, h, w), and the picture that they show, float32 (3, H, W) in -1 .. 1.

        Previews of steps get their colours from them; None: there are no such previews.
        """
        ...

    def noise(self, begun: Any, generator: torch.Generator) -> Tensor:
        """Draw a window's first noise, float32 on the CPU, so that a seed gives the same on every device."""
        ...

    def denoise(self, begun: Any, noise: Tensor, steps: Denoising) -> Tensor:
        """Return the latents of a window, float32 on the device. Raises Cancelled."""
        ...

    def finish(
        self,
        latents: Tensor,
        window: Window,
        prepared: Any,
        options: DecodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Finished:
        """Decode a window; `carried` is what it began with.

        Raises Cancelled, and EngineError (`broken_window`) for a window that is not a picture.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Family(Protocol):
    """A kind of network. What plans need is in its config (`engine.config.FamilyConfig`) and needs no torch."""

    def load(self, folder: Path, **options: Any) -> FamilyModel:
        """Load the weights in `folder`; `options` are those of `engine.loading.model.load_model`.

        Raises SourceError for files that are missing or damaged, and ConfigError.
        """
        ...

    def network(self) -> Any:
        """Return the class of the network: one call of an instance is one forward."""
        ...

    def messages(self) -> Sequence[type]:
        """Return the classes of its conditions, of which other processes get copies; () if it shares no forwards."""
        ...


class SharingModel(FamilyModel, Protocol):
    """A model whose forwards several processes can share (`parallel`)."""

    def part_of(self, begun: Any, group: Any, place: int, size: int) -> Any:
        """Return the part of a window's conditions for the process at `place` of `size` in a process group."""
        ...


class DubbingModel(FamilyModel, Protocol):
    """A model that takes a source video in place of the picture (`FamilyConfig.dubs`)."""

    def look_at(self, prepared: Any, window: Window, picture: npt.NDArray[np.uint8]) -> Prepared:
        """Return `prepared` with another picture for a window, uint8 RGB (H, W, 3)."""
        ...

    def hold(self, begun: Any, frames: npt.NDArray[np.uint8], inside: npt.NDArray[np.float32], until: float) -> Any:
        """Return a window's conditions that hold its latents at its source `frames`, uint8 RGB (F, H, W, 3).

        Where `inside`, float32 (H / 8, W / 8), is 1 they are held above the noise level `until` only.
        """
        ...

    def compose(
        self, made: Finished, source: npt.NDArray[np.uint8], mask: npt.NDArray[np.float32], begin: int
    ) -> Finished:
        """Return a window with the `source` frames' pixels outside the mask, also in what the next window gets.

        The first `begin` of the source frames are repeated ones; `mask`, float32 (H, W) in 0 .. 1, is the share of the
        window's own frames.
        """
        ...

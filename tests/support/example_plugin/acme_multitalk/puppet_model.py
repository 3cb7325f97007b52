"""The puppet's network, and how it makes a window: latents are the pixels at an eighth of the size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from engine.cancel import check
from engine.components import CancelToken, Schedule
from engine.data import DecodeOptions, EncodeOptions, Frames, Inputs, Plan, Window
from engine.family import Carried, Denoising, Finished

SAMPLE_RATE = 16_000
SMALLER = 8


class Mouth(nn.Module):
    """Darkens the place of each speaker's mouth, a row of the mask, by their loudness."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, latents: Tensor, sigma: float, picture: Tensor, open_: Tensor) -> Tensor:
        """Return the velocity, noise - data, of latents (3, F, h, w) at the noise level `sigma`."""
        data = picture[:, None] - self.strength * open_
        return (latents - data) / sigma


@dataclass(frozen=True)
class Heard:
    """The loudness of each voice in each frame, (speakers, frames), 0 .. 1."""

    loudness: Tensor
    reused: bool = False


@dataclass(frozen=True)
class Begun:
    """A window's conditions: the small picture (3, h, w), and how open it is at each place, (1, F, h, w)."""

    picture: Tensor
    open: Tensor


class PuppetModel:
    """See `engine.family.FamilyModel`."""

    memory = "none"
    reason = ""
    prompt_limit = 0

    def __init__(self, path: Path, device: str) -> None:
        from safetensors.torch import load_file

        self.device = device
        self.mouth = Mouth()
        self.mouth.load_state_dict(load_file(path))
        self.mouth.to(device)

    def lost(self, prompt: str) -> str:
        """The puppet reads no prompt, so it loses nothing of it."""
        return ""

    def use(self, name: str) -> AbstractContextManager[None]:
        """The network stays where it is."""
        return nullcontext()

    def modules(self) -> Iterator[tuple[str, Any]]:
        """Yield the network."""
        yield "transformer", self.mouth

    def set_loras(self, active: Sequence[tuple[Path, float]]) -> None:
        """There are none (`PuppetConfig.cannot`)."""

    def prepare(
        self,
        inputs: Inputs,
        prompts: tuple[Sequence[str], str],
        plan: Plan,
        options: EncodeOptions,
        *,
        cancel: CancelToken | None = None,
    ) -> Heard:
        """Measure the loudness of all voices."""
        step = SAMPLE_RATE / options.fps
        voices = []
        for voice in inputs.voices:
            frames = [voice[round(index * step) : round((index + 1) * step)] for index in range(plan.generated_frames)]
            voices.append([float((frame**2).mean() ** 0.5) if len(frame) else 0.0 for frame in frames])
        loudness = torch.tensor(voices)
        return Heard((loudness / loudness.amax().clamp(min=1e-6)).clamp(0, 1))

    def begin(
        self,
        inputs: Inputs,
        window: Window,
        prepared: Heard,
        options: EncodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Begun:
        """Make the picture small, and open the mouths."""
        masks = torch.tensor(inputs.masks[:-1])
        last = prepared.loudness.shape[1] - 1
        frames = torch.arange(window.start, window.start + window.frames).clamp(max=last)
        loudness = prepared.loudness[:, frames]
        opened = torch.einsum("sf,shw->fhw", loudness, masks)[None]
        return Begun(_small(inputs).to(self.device), opened.to(self.device))

    def shown(
        self, begun: Begun, window: Window, prepared: Heard, inputs: Inputs, carried: Carried | None
    ) -> tuple[Tensor, Tensor]:
        """Return the small picture and itself."""
        return begun.picture, _pixels(inputs)

    def noise(self, begun: Begun, generator: torch.Generator) -> Tensor:
        """Draw noise of the latents' shape."""
        return torch.randn((3, *begun.open.shape[1:]), generator=generator)

    @torch.no_grad()
    def denoise(self, begun: Begun, noise: Tensor, steps: Denoising) -> Tensor:
        """Follow the sampler's schedule."""
        schedule, latents = steps.sampler.schedule(), noise.to(self.device)
        steps.guidance.reset()
        count = len(schedule.timesteps) - 1
        for index, time in enumerate(schedule.timesteps[:-1]):
            check(steps.cancel, "denoise")
            velocity = self.mouth(latents, time / 1000, begun.picture, begun.open)
            velocity = steps.guidance.combine({"cond": velocity})
            steps.tally.asked += 1
            if steps.look is not None:
                steps.look(index + 1, latents, velocity, time)
            # Samplers whose steps evaluate the network again would need `step_with`.
            latents = cast("Schedule", schedule).step(velocity, index, latents)
            if steps.on_step is not None:
                steps.on_step(index + 1, count)
        return latents

    def finish(
        self,
        latents: Tensor,
        window: Window,
        prepared: Heard,
        options: DecodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Finished:
        """Make it large again; the next window gets the last small frame."""
        new = latents[:, window.motion : window.motion + window.keep].cpu()
        large = interpolate(new.permute(1, 0, 2, 3), scale_factor=SMALLER, mode="bilinear")
        pictures = ((large.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
        return Finished(Frames(pictures.contiguous().numpy(), options.fps), {"last": new[:, -1].clone()})

    def close(self) -> None:
        """Release the network."""
        self.mouth = Mouth()


def _pixels(inputs: Inputs) -> Tensor:
    return torch.tensor(inputs.image).permute(2, 0, 1).float() / 127.5 - 1


def _small(inputs: Inputs) -> Tensor:
    return nn.functional.avg_pool2d(_pixels(inputs), SMALLER)

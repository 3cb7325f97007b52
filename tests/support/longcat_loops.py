"""Whole windows of LongCat's recordings, replayed: conditions, steps, and what is handed to the next window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from golden_loops import LinearCodec
from torch import Tensor

from engine.network.audio import audio_windows
from plugins.families.longcat.canvas import fit_masks, fit_picture
from plugins.families.longcat.guidance import AvatarGuidance
from plugins.families.longcat.schedules import sigmas
from plugins.families.longcat.versions import VERSIONS
from plugins.families.longcat.voices import silence
from plugins.families.longcat.walk import Carry, Start, denoise_window, finish, hand_over, start_first, start_next

if TYPE_CHECKING:
    from longcat_recordings import LongcatRecordings


@dataclass(frozen=True)
class Met:
    """What was computed, ours and recorded."""

    what: str
    ours: Tensor
    recorded: Tensor


class Codec:
    """The recordings' stand-in for the video autoencoder, with normalised latents."""

    def __init__(self, recorded: dict[str, Tensor]) -> None:
        self.linear = LinearCodec(recorded)
        self.mean, self.std = (recorded[f"latents_{part}"].view(-1, 1, 1, 1) for part in ("mean", "std"))

    def encode(self, pixels: Tensor) -> Tensor:
        return (self.linear.encode(pixels) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.linear.decode(latents * self.std + self.mean)


@dataclass
class Loop:
    """One recorded loop."""

    recorded: dict[str, Tensor]
    header: dict[str, str]
    model: Any

    def __post_init__(self) -> None:
        self.version = VERSIONS[self.header["model_type"].rpartition("v")[2]]
        self.guidance = AvatarGuidance(float(self.header["text"]), float(self.header["audio"]))
        self.frames = int(self.header["num_frames"])
        self.motion = int(self.header.get("num_cond_frames", 13))
        self.codec = Codec(self.recorded)

    @property
    def clips(self) -> int:
        return sum(name.endswith(".noise") for name in self.recorded)

    def clip(self, index: int) -> dict[str, Tensor]:
        prefix = f"clip{index}."
        return {name.removeprefix(prefix): part for name, part in self.recorded.items() if name.startswith(prefix)}

    def replay(self, *, cached: bool | None = None, batched: bool = False) -> Iterator[Met]:
        """Compute all windows, each from what the one before handed over; `cached`: None is as recorded."""
        if cached is None:
            cached = self.header.get("kv_cache", "true") == "true"
        carry: Carry | None = None
        for index in range(self.clips):
            clip = self.clip(index)
            yield from self._inputs(index, clip)
            start = self._start(index, clip, carry)
            if "cond_latents_cached" in clip:
                yield Met(f"clip{index}.given", start.given, clip["cond_latents_cached"][0])
            levels = self._sigmas(index)
            yield Met(f"clip{index}.sigmas", torch.tensor(levels), clip["sigmas"])
            conditions = self._conditions(start, clip)
            denoised = denoise_window(
                self.model, start, conditions, levels, self.guidance, cached=cached, batched=batched
            )
            latents = finish(start, denoised)
            yield Met(f"clip{index}.final_latent", latents, clip["final_latent"][0])
            pixels = self.codec.decode(latents)
            yield Met(f"clip{index}.decoded", (pixels / 2 + 0.5)[:, :, ::8, ::8], clip["decoded_s8"])
            if index + 1 < self.clips:
                carry = hand_over(latents, pixels, self.motion, carry)
                recorded = self.recorded.get(f"clip{index + 1}.cond_pixels_s8")
                if recorded is not None:
                    yield Met(f"clip{index + 1}.history", carry.pixels[:, :, ::8, ::8], recorded)

    def _inputs(self, index: int, clip: dict[str, Tensor]) -> Iterator[Met]:
        stride = self.version.stride
        features = self.recorded["full_audio"]
        windows = audio_windows(features, index * (self.frames - self.motion), self.frames, 25.0, 25.0 * stride)
        yield Met(f"clip{index}.audio", windows, clip["audio"])
        if "pixel_masks" in clip:
            height, width = clip["pixel_masks"].shape[1:]
            masks = fit_masks(self.recorded["ref_target_masks"], (height, width))
            yield Met(f"clip{index}.masks", masks, clip["pixel_masks"])

    def _sigmas(self, index: int) -> tuple[float, ...]:
        return sigmas(
            self.version.name,
            int(self.header["steps"]),
            float(self.header["shift"]),
            distilled=self.header.get("distill") == "true",
            continuation=index > 0,
        )

    def _start(self, index: int, clip: dict[str, Tensor], carry: Carry | None) -> Start:
        noise = clip["noise"][0]
        if carry is not None:
            return start_next(
                noise,
                carry,
                self.codec.encode(carry.pixels),
                keeps_latents=self.version.keeps_latents,
                position=int(self.header["ref_img_index"]),
                hidden_range=int(self.header["mask_frame_range"]),
            )
        if "image_uint8" not in self.recorded:
            return start_first(noise)
        size = (8 * noise.shape[2], 8 * noise.shape[3])
        picture = torch.tensor(fit_picture(self.recorded["image_uint8"].numpy(), size))
        return start_first(noise, self.codec.encode((picture.permute(2, 0, 1) / 127.5 - 1)[:, None]))

    def _conditions(self, start: Start, clip: dict[str, Tensor]) -> dict[str, Any]:
        masks = self.recorded.get("clip0.pixel_masks")
        embedded = {}
        for branch in self.guidance.branches:
            text = "prompt" if branch == "cond" else "negative"
            embedded[branch] = self.model.embed_conditions(
                (start.layout.total, *start.noise.shape[2:]),
                start.layout,
                self.recorded[f"{text}_embeds"],
                silence(clip["audio"]) if branch == "uncond" else clip["audio"],
                masks,
                self.recorded[f"{text}_mask"],
            )
        return embedded


def load_loop(recordings: LongcatRecordings, name: str) -> Loop:
    """Build a recorded loop with its model."""
    return Loop(recordings.tensors(name), recordings.header(name), recordings.model(recordings.model_name(name)))

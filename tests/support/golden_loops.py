"""Whole denoising loops of the recordings, replayed through the engine's own stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from steering import make_cache, make_guidance
from torch import Tensor
from torch.nn import functional as F

from engine.components import Guidance, Sampler, StepCache
from engine.data import DecodeOptions, EncodeOptions, Inputs, Window
from engine.loading.placement import Profile, place
from engine.media.color import color_statistics
from engine.network.audio import audio_windows
from engine.stages.decode import decode
from engine.stages.denoise import denoise, draw_noise
from engine.stages.encode import Conditioning, Texts, encode_text, to_pixels
from plugins.caches.teacache import TeaCache
from plugins.families.multitalk import conditions as conditions_of_family
from plugins.families.multitalk.conditions import encode
from plugins.families.multitalk.model import MultiTalkModel
from plugins.samplers.euler import Euler, EulerConfig
from plugins.samplers.renoise import Renoise, RenoiseConfig

HOME = Path(__file__).parents[1] / "golden"
RATE = 25.0
# TeaCache's polynomials by the name the recordings give them (the public implementation's, with retained steps).
COEFFICIENTS = {
    "multitalk-480": (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977),
    "multitalk-720": (8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401),
}


#: Told what was computed, our tensor, the recorded one and by how much they may differ.
Meet = Callable[[str, Tensor, Tensor, float], None]
# The loops add up the differences of float32 kernels over steps and clips; measured: 2e-5.
LOOP_TOLERANCE = 1e-3


class LinearCodec:
    """The recordings' stand-in for the video autoencoder: pooling and one matrix each way."""

    spatial, temporal, channels = 8, 4, 16

    def __init__(self, recorded: Mapping[str, Tensor]) -> None:
        self.encoder, self.decoder, self.bias = (recorded[f"vae_{part}"] for part in ("enc", "dec", "bias"))

    def encode(self, pixels: Tensor, *, cancel: Any = None) -> Tensor:
        pooled = F.avg_pool2d(pixels.transpose(0, 1), 8).transpose(0, 1)
        groups = [pooled[:, :1], *(pooled[:, at : at + 4] for at in range(1, pooled.shape[1], 4))]
        grouped = torch.stack([group.mean(dim=1) for group in groups], dim=1)
        return torch.einsum("lc,cthw->lthw", self.encoder, grouped) + self.bias.view(-1, 1, 1, 1)

    def decode(self, latents: Tensor, *, cancel: Any = None) -> Tensor:
        mixed = torch.einsum("cl,lthw->cthw", self.decoder, latents - self.bias.view(-1, 1, 1, 1))
        frames = torch.cat([mixed[:, :1], mixed[:, 1:].repeat_interleave(4, dim=1)], dim=1)
        pixels = torch.tanh(0.5 * frames).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return pixels.clamp(-1, 1)


class RecordedText:
    text_len = 512

    def __init__(self, prompts: Mapping[str, Tensor]) -> None:
        self.prompts = prompts

    def encode(self, prompt: str) -> Tensor:
        return self.prompts[prompt][None]

    def lost(self, prompt: str) -> str:
        return ""


class RecordedImage:
    """Gives the recorded features and keeps what it was shown."""

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.seen: Tensor | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        assert self.features is not None
        self.seen = pixels
        return self.features


class NoVoice:
    def encode(self, voice: Tensor, frames: int, *, cancel: Any = None) -> Tensor:
        raise AssertionError("the recordings hold the voices' features")


@dataclass
class Loop:
    """One recorded loop with its parameters."""

    recorded: dict[str, Tensor]
    #: Parameters, as text.
    header: dict[str, str]
    #: Clean motion frames and a fixed reference.
    infinite: bool
    #: FlashTalk: new noise after each step, no guidance, colours of every window matched to the picture.
    renoised: bool
    image: RecordedImage
    model: MultiTalkModel
    #: Source picture, uint8 RGB.
    source: npt.NDArray[np.uint8]

    def number(self, key: str, default: float) -> float:
        """Read a number of the header, told by itself or inside a JSON object."""
        told = [self.header, *(value for value in map(_read, self.header.values()) if isinstance(value, dict))]
        names = (key, f"apg_{key}")
        return float(next((told_here[name] for told_here in told for name in names if name in told_here), default))

    @property
    def clips(self) -> int:
        return sum(name.endswith(".noise") for name in self.recorded)

    def clip(self, index: int) -> dict[str, Tensor]:
        prefix = f"clip{index}."
        return {name.removeprefix(prefix): t for name, t in self.recorded.items() if name.startswith(prefix)}

    @property
    def motion_frames(self) -> int:
        """Frames that later clips repeat; the recorded latents tell where the header does not."""
        later = self.recorded.get("clip1.motion_latent")
        return int(self.number("motion_frame", 5 if later is None else 1 + 4 * (later.shape[1] - 1)))

    def guidance(self) -> Guidance:
        if self.renoised:
            return make_guidance("cfg", 1, 1)
        made = [
            make_guidance(
                name,
                self.number("text", 5),
                self.number("audio", 4),
                momentum=self.number("momentum", -0.75),
                norm_threshold=self.number("norm_threshold", 55),
                eta=self.number("eta", 0),
            )
            for name in ("cfg", "apg")
        ]
        told = [str(_read(value)).strip().lower() for key, value in self.header.items() if "apg" in key.lower()]
        if told or "norm_threshold" in self.header:
            return made[0 if told and all(value in _NO for value in told) else 1]
        return min(made, key=self._misses_first_step)

    def _misses_first_step(self, guidance: Guidance) -> float:
        """Say by how much `guidance` misses the recorded first step: the header need not name it."""
        clip = self.clip(0)
        predictions = [clip[f"step0.pred{index}"] for index in range(3) if f"step0.pred{index}" in clip]
        if len(predictions) < len(guidance.branches) or len(clip.get("step_latents", ())) < 2:
            return 0.0
        names = ("cond", "drop_text", "uncond") if len(predictions) == 3 else ("cond", "drop_audio")
        velocity = guidance.combine(dict(zip(names, predictions, strict=False)))
        guidance.reset()
        before, after = clip["step_latents"][:2]
        taken = (before - after) * 1000 / (clip["timesteps"][0] - clip["timesteps"][1])
        # The leading frames may be given.
        return float((taken - velocity)[:, -1].norm())

    def cache(self) -> StepCache:
        if "thresh" not in self.header:
            return make_cache("none")
        return make_cache(
            "teacache",
            threshold=self.number("thresh", 0.2),
            warmup=_warmup(self.header.get("ret_steps", "5")),
            coefficients=_coefficients(self.header.get("coefficients", "multitalk-480")),
        )


# Values that say no.
_NO = ("", "0", "0.0", "false", "no", "none", "null", "off")


def _read(told: str) -> Any:
    """Read a header's value: JSON, or what it says."""
    try:
        return json.loads(told)
    except ValueError:
        return told


def _warmup(told: str) -> int:
    """Read the retained steps: "5", or "True(5*3)" for three passes."""
    digits = "".join(character if character.isdigit() else " " for character in told).split()
    return int(digits[0]) if digits else 5


def _coefficients(told: str) -> tuple[float, ...]:
    """Read a name (of either repository: their numbers are the same), or numbers between commas."""
    told = told.replace("infinitetalk", "multitalk")
    return COEFFICIENTS[told] if told in COEFFICIENTS else tuple(float(part) for part in told.strip("[]()").split(","))


def load_loop(recordings: Any, name: str) -> Loop:
    """Build the recorded model with stand-ins for its encoders."""
    recorded, header = recordings.tensors(name), recordings.header(name)
    overrides = {
        key.removeprefix("override."): tensor for key, tensor in recorded.items() if key.startswith("override.")
    }
    image = RecordedImage()
    transformer = recordings.model(recordings.model_name(name), **overrides)
    model = MultiTalkModel(
        transformer=transformer,
        codec=LinearCodec(recorded),
        text=RecordedText(
            {"prompt": recorded["context"], "negative": recorded.get("context_null", recorded["context"])}
        ),
        image=image,
        audio=NoVoice(),
        placement=place(Profile(), {}, device="cpu"),
        device="cpu",
    )
    renoised = name.startswith("flashtalk")
    infinite = renoised or name.startswith("infinite")
    return Loop(recorded, header, infinite, renoised, image, model, _picture(recordings, recorded))


def _picture(recordings: Any, recorded: Mapping[str, Tensor]) -> npt.NDArray[np.uint8]:
    """Return the picture the first clip was made from; recordings without one share a sibling's."""
    shown = recorded["clip0.clip_vision_pixels_s8"][:, 0]
    height, width = (8 * size for size in shown.shape[1:])
    candidates: list[Tensor] = [recorded["image_uint8"]] if "image_uint8" in recorded else []
    for path in [*sorted(recordings.folder.glob("*loop_*.safetensors")), *sorted(HOME.glob("*loop_*.safetensors"))]:
        with safe_open(path, "pt") as file:
            if "image_uint8" in file.keys():  # noqa: SIM118 - not a dict
                candidates.append(file.get_tensor("image_uint8"))
    for candidate in candidates:
        if (to_pixels(_fit(candidate.numpy(), height, width))[:, ::8, ::8] - shown).abs().max() < 1e-5:
            return candidate.numpy()
    return _rebuilt(recorded, {name.removeprefix("clip0."): tensor for name, tensor in recorded.items()})


def _rebuilt(recorded: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> npt.NDArray[np.uint8]:
    """Make a picture that the stand-in encoders cannot tell from the recorded one.

    The image branch saw the first pixel of every 8 x 8 block, the autoencoder the mean of every block.
    """
    corners = clip["clip_vision_pixels_s8"][:, 0]
    latents = clip["y"][0, 4:, 0] - recorded["vae_bias"][:, None, None]
    means = torch.einsum("cl,lhw->chw", torch.linalg.pinv(recorded["vae_enc"].double()).float(), latents)
    first, total = ((corners + 1) / 2 * 255).round(), ((means + 1) / 2 * 255 * 64).round()
    # Whole numbers with the wanted sum: the others share the rest evenly, some one higher.
    share, higher = torch.div(total - first, 63, rounding_mode="floor"), (total - first) % 63
    pixels = share[..., None] + (torch.arange(64) <= higher[..., None])
    pixels[..., 0] = first
    blocks = pixels.reshape(*first.shape, 8, 8).permute(1, 3, 2, 4, 0)
    picture: npt.NDArray[np.uint8] = blocks.flatten(2, 3).flatten(0, 1).clamp(0, 255).to(torch.uint8).numpy()
    return picture


def _fit(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    scale = max(height / image.shape[0], width / image.shape[1])
    size = (int(np.ceil(scale * image.shape[1])), int(np.ceil(scale * image.shape[0])))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - height) / 2), round((size[0] - width) / 2)
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def _reference_frame(loop: Loop, clip: Mapping[str, Tensor], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the frame of the source video that the clip was shown: the picture, or its colours inverted."""
    frames = [_fit(source, height, width) for source in (loop.source, 255 - loop.source)]
    shown = clip["clip_vision_pixels_s8"][:, 0]
    for frame in frames:
        if (to_pixels(frame)[:, ::8, ::8] - shown).abs().max() < 1e-5:
            return frame
    return _rebuilt(loop.recorded, clip)


def mirrored(features: Tensor, end: int) -> Tensor:
    """Make voices long enough as the public implementation does: their end backwards, three frames too many."""
    missing = end - features.shape[1] + 3
    return torch.cat([features, features[:, -missing:].flip(1)], dim=1) if missing >= 3 else features


def replay(loop: Loop, meet: Meet) -> None:
    """Run every clip through encode, denoise and decode; `meet(what, ours, recorded)` is told of each tensor."""
    guidance, cache = loop.guidance(), loop.cache()
    text = encode_text(loop.model, "prompt", "negative", guidance.branches)
    generator = torch.Generator().manual_seed(int(loop.number("seed", 42)))
    height, width = (8 * size for size in loop.recorded["clip0.decoded_s8"].shape[2:])
    picture = _fit(loop.source, height, width)
    reference = color_statistics(to_pixels(picture))
    history, start = None, 0
    for index in range(loop.clips):
        clip = loop.clip(index)
        frames = clip["decoded_s8"].shape[1]
        motion = 0 if index == 0 else loop.motion_frames
        start = start if index == 0 else start + frames - motion
        voices = loop.recorded.get("full_audio")
        if voices is None:
            start, voices = 2, _around(clip["audio"])
        elif index > 0 and not loop.renoised:
            voices = mirrored(voices, start + frames)
        if loop.infinite and not loop.renoised:
            picture = _reference_frame(loop, clip, height, width)
        window = Window(index=index, start=start, frames=frames, motion=motion, keep=frames - motion)
        inputs = Inputs(
            image=picture, voices=(), masks=clip["ref_target_masks"].numpy(), sound=np.zeros((0, 2), np.float32)
        )
        history = _replay_clip(
            loop, clip, inputs, window, history, text, voices, guidance, cache, reference, generator, meet
        )


def _around(windows: Tensor) -> Tensor:
    """Return features whose frames from 2 on have the recorded windows (n, frames, 5, layers, channels)."""
    return torch.cat([windows[:, 0, :2], windows[:, :, 2], windows[:, -1, 3:]], dim=1)


def _is_random(windows: Tensor) -> bool:
    """Say whether recorded windows belong to no sound: neighbours do not share frames."""
    return not torch.equal(windows[:, 1, 2], windows[:, 0, 3])


@contextmanager
def _given(windows: Tensor) -> Iterator[None]:
    """Have `encode` use recorded windows that belong to no sound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions_of_family, "audio_windows", lambda *_: windows)
        yield


def _replay_clip(
    loop: Loop,
    clip: Mapping[str, Tensor],
    inputs: Inputs,
    window: Window,
    history: Tensor | None,
    text: Texts,
    voices: Tensor,
    guidance: Guidance,
    cache: StepCache,
    reference: Any,
    generator: torch.Generator,
    meet: Meet,
) -> Tensor:
    def check(name: str, ours: Tensor, recorded: str) -> None:
        if recorded in clip:
            meet(f"clip{window.index}.{name}", ours, clip[recorded], LOOP_TOLERANCE)

    loop.image.features = clip["clip_fea"]
    heard = audio_windows(voices, window.start, window.frames, RATE, RATE)
    with _given(clip["audio"]) if _is_random(clip["audio"]) else nullcontext():
        conditions = encode(
            loop.model,
            inputs,
            window,
            Conditioning(text, voices, reference),
            EncodeOptions(
                guidance.branches, "infinitetalk" if loop.infinite else "multitalk", fps=RATE, native_fps=RATE
            ),
            history=history,
        )
    if not _is_random(clip["audio"]):
        check("audio", heard, "audio")
    check("y", conditions.latents[None], "y")
    assert loop.image.seen is not None
    check("clip_vision_pixels", loop.image.seen[:, None, ::8, ::8], "clip_vision_pixels_s8")
    if conditions.motion is not None:
        check("motion_latent", conditions.motion.latents, "motion_latent")

    steps = clip["timesteps"].shape[0] - 1
    shift = loop.number("shift", 7)
    sampler: Sampler = Euler(EulerConfig(bundle="standard", steps=steps, shift=shift))
    if loop.renoised:
        sampler = Renoise(RenoiseConfig(bundle="standard", steps=steps, shift=shift))
        # The order of all draws is that of the public implementation.
        meet("noise", draw_noise(tuple(clip["noise"].shape), generator), clip["noise"], 0)
    check("timesteps", torch.tensor(sampler.schedule().timesteps), "timesteps")
    fed: list[Tensor] = []
    predicted: list[Tensor] = []

    def record(_module: Any, _args: Any, given: Mapping[str, Tensor], output: tuple[Tensor]) -> None:
        fed.append(given["hidden_states"][0, :16].clone())
        predicted.append(output[0][0].clone())

    handle = loop.model.transformer.register_forward_hook(record, with_kwargs=True)
    noise: Iterator[Tensor] | None = (
        iter(clip["motion_noise"]) if not loop.infinite and "motion_noise" in clip else None
    )
    latents = denoise(
        loop.model.transformer,
        conditions,
        clip["noise"],
        sampler=sampler,
        guidance=guidance,
        cache=cache,
        generator=generator,
        motion_noise=noise,
    )
    handle.remove()
    assert noise is None or next(noise, None) is None
    check("step_latents", torch.stack(fed[:: len(guidance.branches)]), "step_latents")
    # Where a scale is 1 the public implementation runs passes that cancel out; the first two are ours as well.
    for index, prediction in enumerate(predicted[: len(guidance.branches)]):
        check(f"step0.pred{index}", prediction, f"step0.pred{index}")
    check("final_latent", latents, "final_latent")
    if isinstance(cache, TeaCache) and "computed" in loop.recorded:
        computed = loop.recorded["computed"][window.index * steps : (window.index + 1) * steps]
        meet("computed", torch.tensor(cache.computed).float(), computed.float().mean(dim=1), 0)

    decoded = decode(
        loop.model,
        latents,
        window,
        reference,
        DecodeOptions(
            motion_frames=loop.motion_frames,
            color_strength=loop.number("color_strength", loop.number("color_correction_strength", 0)),
            fps=RATE,
        ),
    )
    # Other recordings have them after the colours, too.
    finished = clip.get("corrected_s8", clip["decoded_s8"])
    ends = finished[:, -decoded.history.shape[1] :]
    meet(f"clip{window.index}.history", decoded.history[:, :, ::8, ::8], ends, LOOP_TOLERANCE)
    pictures = torch.from_numpy(decoded.frames.pictures).permute(3, 0, 1, 2)[:, :, ::8, ::8].float()
    wanted = ((finished[:, window.motion :] + 1) / 2 * 255).clamp(0, 255).floor()
    # A value beside a whole number may be cut to either side of it.
    meet(f"clip{window.index}.pictures", pictures, wanted, 1)
    return decoded.history

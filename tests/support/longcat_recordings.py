"""Recordings of LongCat-Video-Avatar, the models that stand beside them, and a tiny network of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recordings import Recordings

HOME = Path(__file__).parents[1] / "golden" / "longcat"
#: Test argument -> the files of the folder it takes its cases from.
PATTERNS = {"longcat_forward": "forward_*", "longcat_loop": "loop_*"}


class LongcatRecordings(Recordings):
    """A folder of recordings; a file that is not in it is looked for in tests/golden/longcat."""

    def path(self, name: str) -> Path:
        for path in (self.folder / name, HOME / name):
            if path.exists():
                return path
        raise FileNotFoundError(f"{name} is neither in {self.folder} nor in {HOME}")

    def of(self, name: str) -> LongcatRecordings:
        """Return the recordings that `name` belongs to: these, or those in the repository if it is not in this folder.

        Files of one folder belong to the models of that folder.
        """
        return self if (self.folder / f"{name}.safetensors").exists() else LongcatRecordings(HOME)

    def model_name(self, recording: str) -> str:
        told = self.header(recording).get("model")
        return str(told).strip('"') if told else next(iter(self.names("model_*") or ["model_A"]))

    def config(self, model: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.header(model)["config"])
        return config

    def model(self, name: str, state: dict[str, Any] | None = None, **replaced: Any) -> Any:
        """Build the recorded model `name` in float32; `state` adds tensors, `replaced` are arguments."""
        from plugins.families.longcat.transformer import AvatarTransformer3DModel

        model = AvatarTransformer3DModel(**self.config(name) | replaced)
        model.load_state_dict(self.tensors(name) | (state or {}))
        return model.eval().requires_grad_(False)


@dataclass
class Replay:
    """One recorded forward, ready to run with our network."""

    model: Any
    latents: Any
    timestep: Any
    conditions: list[Any]
    cache: Any
    layout: Any
    recorded: dict[str, Any]

    def run(self) -> Any:
        """Return the sample of the noisy frames."""
        import torch

        with torch.no_grad():
            return self.model(self.latents, self.timestep, self.conditions, self.cache)[0]

    @property
    def expected(self) -> Any:
        """The recorded noisy frames."""
        return self.recorded["out"][:, :, -self.layout.noisy :]


def layout_of(call: dict[str, Any], total: int) -> Any:
    """Return the frames that the arguments of a recorded call describe."""
    from plugins.families.longcat.frames import FrameLayout

    return FrameLayout(
        total,
        call.get("num_cond_latents", 0),
        bool(call.get("num_ref_latents", 0)),
        call.get("ref_img_index", 10),
        call.get("mask_frame_range", 3),
    )


def cache_recording(recordings: LongcatRecordings, model: str) -> str:
    """Return the recording that fills the cache of the recorded `model`."""
    for name in recordings.names("forward_*") or ["forward_g_cache"]:
        call = json.loads(recordings.header(name)["call"])
        if call.get("return_kv") and recordings.model_name(name) == model:
            return name
    return "forward_g_cache"


def replay(recordings: LongcatRecordings, name: str, model: Any = None) -> Replay:
    """Prepare a recorded forward; `model`: one to use instead of the recorded one."""
    recorded, call = recordings.tensors(name), json.loads(recordings.header(name)["call"])
    config = recordings.config(recordings.model_name(name))
    extra = {key.removeprefix("extra."): part for key, part in recorded.items() if key.startswith("extra.")}
    changed: dict[str, Any] = {"audio_prenorm": True} if extra else {}
    if "flag_flipped" in name:
        changed["text_tokens_zero_pad"] = not config["text_tokens_zero_pad"]
    if model is None:
        model = recordings.model(recordings.model_name(name), extra, **changed)
    latents, windows = recorded["in.hidden_states"], recorded["in.audio_embs"]
    frames = (windows.shape[1] - 1) // config["vae_scale"] + 1
    layout = layout_of(call, frames + call.get("num_ref_latents", 0))
    filling = bool(call.get("return_kv"))
    cache = None
    if latents.shape[2] < layout.total and not filling:
        given = recordings.tensors(cache_recording(recordings, recordings.model_name(name)))["in.hidden_states"]
        cache = model.fill_cache(given, layout)
    masks = recorded.get("in.ref_target_masks")
    conditions = [
        model.embed_conditions(
            (layout.total, *latents.shape[3:]),
            layout,
            recorded["in.encoder_hidden_states"][index],
            # Without masks the first axis is the batch.
            windows if masks is not None else windows[index : index + 1],
            masks,
            recorded["in.encoder_attention_mask"][index : index + 1],
        )
        for index in range(0 if filling else len(recorded["in.encoder_hidden_states"]))
    ]
    return Replay(model, latents, recorded["in.timestep"], conditions, cache, layout, recorded)


@dataclass(frozen=True)
class TinyAvatar:
    """A two-layer network with seeded weights, and inputs for it."""

    config: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 24,
            "depth": 2,
            "num_heads": 2,
            "caption_channels": 8,
            "adaln_tembed_dim": 16,
            "frequency_embedding_size": 16,
            "audio_block": 2,
            "audio_channel": 4,
            "intermediate_dim": 8,
            "output_dim": 8,
            "context_tokens": 3,
            "text_len": 6,
        }
    )
    #: Of a frame.
    grid: tuple[int, int] = (4, 8)

    def model(self, **changes: Any) -> Any:
        import torch

        from plugins.families.longcat.transformer import AvatarTransformer3DModel

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AvatarTransformer3DModel(**self.config | changes)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    def layouts(self) -> Iterator[Any]:
        """Yield a window from text, one with a picture, and a continuation whose reference is partly hidden."""
        from plugins.families.longcat.frames import FrameLayout

        yield FrameLayout(4)
        yield FrameLayout(4, 1)
        yield FrameLayout(7, 3, True, 4, 1)

    def conditions(self, layout: Any, voices: int = 1) -> dict[str, Any]:
        """Return what embed_conditions takes, by name."""
        import torch

        random = torch.Generator().manual_seed(1)
        rows, columns = self.grid
        masks = torch.zeros(3, rows, columns)
        for column in range(columns):
            masks[min(column * 3 // columns, 2), :, column] = 1
        frames = 1 + 4 * (layout.total - int(layout.reference) - 1)
        return {
            "latent_shape": (layout.total, rows, columns),
            "layout": layout,
            "encoder_hidden_states": torch.randn(1, 4, 8, generator=random),
            "audio_windows": torch.randn(voices, frames, 5, 2, 4, generator=random),
            "speaker_masks": masks if voices > 1 else None,
        }

    def latents(self, layout: Any) -> Any:
        import torch

        return torch.randn(1, 16, layout.total, *self.grid, generator=torch.Generator().manual_seed(2))

    def run(self, model: Any, layout: Any, voices: int = 1, *, cached: bool = False, **changes: Any) -> Any:
        """Return the sample of one forward at time 731.5 without gradients."""
        import torch

        latents, time = self.latents(layout), torch.tensor([731.5])
        with torch.no_grad():
            conditions = model.embed_conditions(**self.conditions(layout, voices) | changes)
            if not cached:
                return model(latents, time, conditions)[0]
            cache = model.fill_cache(latents[:, :, : layout.given], layout)
            return model(latents[:, :, layout.given :], time, conditions, cache)[0]

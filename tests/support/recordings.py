"""Recorded tensors of the public code, the models that stand beside them, and a tiny network of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

HOME = Path(__file__).parents[1] / "golden"


class Recordings:
    """A folder of golden tensors; a file that is not in it is looked for in tests/golden."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        for path in (self.folder / name, HOME / name):
            if path.exists():
                return path
        raise FileNotFoundError(f"{name} is neither in {self.folder} nor in {HOME}")

    def names(self, pattern: str) -> list[str]:
        """Return the stems of the safetensors files that match `pattern`, sorted."""
        return sorted(path.stem for path in self.folder.glob(f"{pattern}.safetensors"))

    def tensors(self, name: str) -> dict[str, Any]:
        from safetensors.torch import load_file

        # Views into the file are unaligned, and kernels round unaligned input differently.
        return {key: tensor.clone() for key, tensor in load_file(self.path(f"{name}.safetensors")).items()}

    def header(self, name: str) -> dict[str, str]:
        from safetensors import safe_open

        with safe_open(self.path(f"{name}.safetensors"), "pt") as file:
            return file.metadata() or {}

    def model_name(self, recording: str) -> str:
        """Return the model a recording was made with; one that does not tell was made with the only one there is."""
        told = self.header(recording).get("model")
        return str(told).strip('"') if told else next(iter(self.names("model_*") or Recordings(HOME).names("model_*")))

    def config(self, model: str) -> dict[str, Any]:
        """Return our constructor's arguments for the recorded `model`."""
        from engine.loading.key_map import to_engine_config

        return to_engine_config(json.loads(self.header(model)["config"]))

    def model(self, name: str, state: dict[str, Any] | None = None, **replaced: Any) -> Any:
        """Build the recorded model `name` in float32, ready to run.

        `state` (reference names) replaces its whole state dict, `replaced` single tensors by reference name.
        """
        from engine.loading.key_map import to_engine
        from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

        model = MultiTalkTransformer3DModel(**self.config(name))
        tensors = (self.tensors(name) if state is None else state) | replaced
        model.load_state_dict({to_engine(key): tensor for key, tensor in tensors.items()})
        return model.eval()

    def audio_encoder(self, name: str) -> Any:
        """Build the recorded wav2vec 2.0 model `name`."""
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        from engine.network.audio import AudioEncoder

        told = json.loads(self.header(name)["config"])
        # What this version of the library refuses, and what only training reads.
        told = {key: value for key, value in told.items() if not key.startswith("_") and key != "output_attentions"}
        model = cast("Any", Wav2Vec2Model)(Wav2Vec2Config(**told)).eval()
        tensors = self.tensors(name)
        model.load_state_dict({key[6:]: tensor for key, tensor in tensors.items() if key.startswith("model.")})
        return AudioEncoder(model)

    def replay(self, model: Any, recorded: dict[str, Any]) -> Any:
        """Run `model` on a recorded forward's inputs: (1, 16, T, h, w)."""
        import torch

        with torch.no_grad():
            return model(
                torch.cat([recorded["in.x"][None], recorded["in.y"]], dim=1),
                recorded["in.t"],
                recorded["in.context"][None],
                recorded["in.clip_fea"],
                recorded["in.audio"],
                recorded["in.ref_target_masks"],
            ).sample


@dataclass(frozen=True)
class TinyNetwork:
    """A two-layer network with seeded weights, and inputs for it."""

    config: dict[str, Any] = field(
        default_factory=lambda: {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "text_dim": 8,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "image_dim": 10,
            "text_len": 6,
            "image_tokens": 5,
            "audio_layers": 2,
            "audio_channels": 4,
            "audio_intermediate_dim": 8,
            "audio_output_dim": 8,
            "audio_tokens": 3,
        }
    )
    latent_shape: tuple[int, int, int] = (3, 4, 8)

    def model(self, **changes: Any) -> Any:
        import torch

        from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MultiTalkTransformer3DModel(**self.config | changes)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    def conditions(self, speakers: int = 2) -> dict[str, Any]:
        """Return what embed_conditions takes, by name, for a number of speakers."""
        import torch

        random = torch.Generator().manual_seed(1)
        frames, rows, columns = self.latent_shape
        masks = torch.zeros(speakers + 1, rows, columns)
        for column in range(columns):
            masks[min(column * (speakers + 1) // columns, speakers), :, column] = 1
        return {
            "encoder_hidden_states": torch.randn(1, 4, 8, generator=random),
            "encoder_hidden_states_image": torch.randn(1, 5, 10, generator=random),
            "audio_windows": torch.randn(speakers, 1 + 4 * (frames - 1), 5, 2, 4, generator=random),
            "speaker_masks": masks,
        }

    def latents(self) -> dict[str, Any]:
        """Return the noisy latents and the time, by name."""
        import torch

        latents = torch.randn(1, 36, *self.latent_shape, generator=torch.Generator().manual_seed(2))
        return {"hidden_states": latents, "timestep": torch.tensor([731.5])}

    def run(self, model: Any, speakers: int = 2) -> Any:
        """Return the sample of one forward without gradients."""
        import torch

        with torch.no_grad():
            return model(**self.latents(), **self.conditions(speakers)).sample

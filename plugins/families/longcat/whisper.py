"""Voice -> features of 1.5: five groups of layers of Whisper's encoder, at the video's frame rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.nn import functional as F

from engine.cancel import check
from engine.components import CancelToken, Reader
from engine.errors import SourceError
from engine.loading.fill import fill, find_stored, match
from engine.loading.safetensors_reader import AheadReader
from engine.network.audio import SAMPLE_RATE

#: Samples of one piece: the encoder hears 30 seconds at a time.
PIECE = 30 * SAMPLE_RATE
#: Groups of layers; the last group is the encoder's output alone.
GROUPS = 5


def layer_groups(layers: int) -> tuple[tuple[int, int], ...]:
    """Return the groups, begin .. end - 1, of the hidden states of an encoder with `layers` layers.

    State 0 is the input of the first layer, the last one the normalised output. Of 33 states: 0-7, 8-15, 16-23, 24-31,
    and 32.
    """
    size = layers // (GROUPS - 1)
    return (*((size * index, size * (index + 1)) for index in range(GROUPS - 1)), (layers, layers + 1))


class WhisperFeatures:
    """The encoder of Whisper large-v3 (transformers' WhisperEncoder), float32; its decoder is not used.

    Pieces of 30 seconds are encoded one by one, as in the public code: features jump where two pieces meet.
    """

    def __init__(self, encoder: Any, extractor: Any = None) -> None:
        """Take an encoder, and its WhisperFeatureExtractor; None: one for the encoder's mel bands."""
        from transformers import WhisperFeatureExtractor

        kind: Any = WhisperFeatureExtractor
        self.model = encoder
        self.extractor = extractor or kind(feature_size=encoder.config.num_mel_bins)
        self._groups = layer_groups(encoder.config.encoder_layers)

    @torch.no_grad()
    def encode(self, voice: Tensor, frames: int, *, cancel: CancelToken | None = None) -> Tensor:
        """Return features of a voice, (samples,) float32 mono 16 kHz at -23 LUFS: (frames, 5, channels), float32.

        `frames` is int(25 * seconds): the encoder's outputs are cut to twice as many before they are interpolated.
        Raises Cancelled between pieces once `cancel` is set.
        """
        pieces: list[Tensor] = []
        for begin in range(0, max(1, len(voice)), PIECE):
            check(cancel, "encode")
            pieces.append(self._encode_piece(voice[begin : begin + PIECE]))
        groups = torch.cat(pieces)[: 2 * frames].permute(1, 2, 0)
        return F.interpolate(groups, size=frames, mode="linear", align_corners=True).permute(2, 0, 1).contiguous()

    def _encode_piece(self, voice: Tensor) -> Tensor:
        """Encode at most 30 seconds: (1500, 5, channels)."""
        mel = self.extractor(voice.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        device = next(self.model.parameters()).device
        states: Sequence[Tensor] = self.model(mel.to(device, torch.float32), output_hidden_states=True).hidden_states
        return torch.stack([sum(states[a + 1 : b], states[a])[0] / (b - a) for a, b in self._groups], dim=1)


def load_whisper(folder: Path, *, device: str = "cpu", reader: Reader | None = None) -> WhisperFeatures:
    """Read the encoder of a Whisper in transformers' layout, in float32; its decoder is skipped. Raises SourceError."""
    from transformers import WhisperConfig, WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    kinds: Any = (WhisperConfig, WhisperFeatureExtractor, WhisperEncoder)
    try:
        config = kinds[0].from_pretrained(folder)
        described = (folder / "preprocessor_config.json").is_file()
        extractor = kinds[1].from_pretrained(folder) if described else None
        with init_empty_weights():
            encoder = kinds[2](config)
    except Exception as error:
        # Config values reach constructors unchecked, so any error is possible.
        raise SourceError(f"{folder} builds no Whisper: {error}", field="source", hint="get it again") from error
    stored = {
        name.removeprefix("model.").removeprefix("encoder."): entry
        for name, entry in find_stored(folder).items()
        if name.removeprefix("model.").startswith("encoder.")
    }
    match(folder, encoder, stored)
    fill(encoder, stored, lambda _name: torch.float32, reader or AheadReader(), device)
    return WhisperFeatures(encoder.eval(), extractor)

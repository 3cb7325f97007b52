"""What LongCat-Video-Avatar costs, for plans. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.planning.network import Section
from engine.planning.operations import Forward
from engine.planning.parameters import Count, Sizes, published_sizes
from plugins.families.longcat import operations, sizes
from plugins.families.longcat.frames import FrameLayout

#: Features of a voice: groups of layers, channels, and frames per second.
_WHISPER, _WAV2VEC2 = (5, 1280, 25), (12, 768, 32)
#: Mel frames of 30 seconds, which Whisper's encoder takes at a time, and their positions.
_PIECE, _POSITIONS = 3000, 1500
_EXACT = 4


class LongCatCosts:
    """See `engine.planning.network.Costs`."""

    #: The picture is a frame of the sequence, not channels beside it.
    beside = 0
    #: Bytes of a value of the transformer in its published files.
    published = 2

    def __init__(self, name: str, config: Mapping[str, Any], *, position: int, hidden_range: int, keeps: bool) -> None:
        """`name`: "1.0" or "1.5"; `config`: the network's; the others are those of `LongCatConfig`."""
        self._config, self._name, self._keeps = config, name, keeps
        self._position, self._hidden_range = position, hidden_range
        self.layers, self.width = int(config["depth"]), int(config["hidden_size"])
        self.text_len, self.channels = int(config["text_len"]), int(config["out_channels"])
        self.inner = sizes.inner_width(config)
        self.largest_layer = self.width * max(self.inner, 3 * self.width)

    def tokens(self, section: Section) -> int:
        """See `Costs`."""
        _, rows, columns = section.latents
        _, height, width = self._config["patch_size"]
        return self._layout(section).total * (rows // int(height)) * (columns // int(width))

    def forward_work(
        self,
        section: Section,
        *,
        value: int,
        multiplied: Any = None,
        compiled: bool = False,
        fused: bool = False,
        stream: int = _EXACT,
    ) -> Forward:
        """See `Costs`. Filling the keys of a window is not included: less than one step."""
        _, rows, columns = section.latents
        return operations.forward_work(
            self._config,
            self._layout(section),
            rows,
            columns,
            value=value,
            voices=section.speakers,
            cached=self._keeps,
            stream=stream,
        )

    def forward_bytes(
        self, section: Section, *, value: int, adapted: bool, expanded: bool, stream: int, device: str
    ) -> int:
        """See `Costs`. The first window keeps fewer keys than those that continue others, and has more new frames.

        Where its two together are larger, this is what they take beyond `cache_bytes`.
        """
        _, rows, columns = section.latents

        def needed(one: Section) -> int:
            peak = operations.forward_bytes(
                self._config,
                self._layout(one),
                rows,
                columns,
                value=value,
                voices=section.speakers,
                cached=self._keeps,
                adapted=adapted,
                expanded=expanded,
                stream=stream,
                device=device,
            )
            return peak + self._kept_bytes(one, value)

        return max(needed(section), needed(section._replace(motion=0))) - self._kept_bytes(section, value)

    def conditions_bytes(self, section: Section, *, value: int, passes: int) -> int:
        """See `Costs`."""
        _, rows, columns = section.latents
        return sizes.conditions_bytes(
            self._config, self._layout(section), rows, columns, value=value, voices=section.speakers, passes=passes
        )

    def cache_bytes(self, section: Section, cache: Any, *, value: int, passes: int) -> int:
        """Return the bytes of the keys and values of given frames; step caches are refused."""
        return self._kept_bytes(section, value)

    def encoded_frames(self, section: Section, frames: int) -> int:
        """Return the picture, or those that continue the window before: what is new needs no latents."""
        return max(1, section.motion)

    def image_bytes(self, *, value: int) -> int:
        """Return 0: there is no encoder for pictures but the autoencoder."""
        return 0

    def hearing_bytes(self, speakers: int, seconds: float) -> int:
        """See `Costs`."""
        if self._name == "1.0":
            groups, channels, rate = _WAV2VEC2
            return int(speakers * seconds * rate * groups * channels * _EXACT) + _wav2vec2_bytes(seconds)
        groups, channels, rate = _WHISPER
        whisper = sizes.WHISPER_LARGE_V3
        dim, heads = int(whisper["d_model"]), int(whisper["encoder_attention_heads"])
        # All hidden states of all pieces, at two a frame; the scores of one piece, and its mels.
        states = int(seconds * 2 * rate) * (int(whisper["encoder_layers"]) + 1) * dim
        one = heads * _POSITIONS**2 * 2 + _PIECE * int(whisper["num_mel_bins"]) + 4 * _POSITIONS * dim
        return int(speakers * seconds * rate * groups * channels * _EXACT) + (states + one) * _EXACT

    def _kept_bytes(self, section: Section, value: int) -> int:
        if not self._keeps:
            return 0
        _, rows, columns = section.latents
        return sizes.cache_bytes(self._config, self._layout(section), rows, columns, value=value)

    def _layout(self, section: Section) -> FrameLayout:
        frames = section.latents[0]
        if not section.motion:
            return FrameLayout(frames, 1)
        given = 2 + (section.motion - 1) // 4
        return FrameLayout(1 + frames, given, True, self._position, self._hidden_range)


def longcat_sizes(name: str, *, position: int, hidden_range: int, keeps: bool, blocks: int | None = None) -> Sizes:
    """Return what plans know of version "1.0" or "1.5"; `blocks`: another number of them than the published one."""
    wan = published_sizes("wan-14b")
    config = sizes.published_config(name)
    if blocks is not None:
        config["depth"] = blocks
    hearing = wan.counts["audio_encoder"] if name == "1.0" else Count(float32=sizes.whisper_parameters())
    counts: Mapping[str, Any] = {
        **wan.counts,
        "transformer": sizes.transformer_count(config),
        "image_encoder": Count(),
        "audio_encoder": hearing,
    }
    costs = LongCatCosts(name, config, position=position, hidden_range=hidden_range, keeps=keeps)
    configs = {"vae": wan.configs["vae"], "text_encoder": wan.configs["text_encoder"], "transformer": config}
    return Sizes(configs, counts, sizes.block_count(config), sizes.root_count(config), costs)


def _wav2vec2_bytes(seconds: float) -> int:
    from engine.planning.activations import audio_bytes

    return audio_bytes(published_sizes("wan-14b").configs["audio_encoder"], seconds)

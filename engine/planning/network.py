"""What a network costs: the protocol by which plans ask a family, and the answers for networks of MultiTalk's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from engine.components import StepCache
from engine.planning import activations, operations
from engine.planning.operations import Forward, Multiplied
from engine.planning.parameters import Sizes, width

Config = Mapping[str, Any]


class Section(NamedTuple):
    """What a forward works on."""

    #: Latents (T, h, w) of the window.
    latents: tuple[int, int, int]
    #: Voices.
    speakers: int
    #: Pixel frames that the window repeats from the one before; 0: none.
    motion: int = 0


class Costs(Protocol):
    """Counts of a network, from its config alone. Bytes and operations are of one forward of one pass."""

    #: Blocks, channels of a token, and tokens of a prompt.
    layers: int
    width: int
    text_len: int
    #: Values of a block's largest layer, and inner channels of its feed-forward.
    largest_layer: int
    inner: int
    #: Bytes of a value in the published files.
    published: int
    #: Channels of the latents, and of what the network gets beside them.
    channels: int
    beside: int

    def tokens(self, section: Section) -> int:
        """Return the tokens of a window."""
        ...

    def forward_work(
        self,
        section: Section,
        *,
        value: int,
        multiplied: Multiplied | None = None,
        compiled: bool = False,
        fused: bool = False,
        stream: int = 4,
    ) -> Forward:
        """Return the operations; see `engine.planning.operations.forward_work`."""
        ...

    def forward_bytes(
        self, section: Section, *, value: int, adapted: bool, expanded: bool, stream: int, device: str
    ) -> int:
        """Return the peak of temporary tensors, without conditions.

        `adapted`: LoRAs are attached. `expanded`: weights are quantised, and expanded one layer at a time.
        """
        ...

    def conditions_bytes(self, section: Section, *, value: int, passes: int) -> int:
        """Return the bytes of a window's conditions for `passes` passes."""
        ...

    def cache_bytes(self, section: Section, cache: StepCache | None, *, value: int, passes: int) -> int:
        """Return the bytes that are kept from one forward to the next: by a step cache, or by the network itself."""
        ...

    def encoded_frames(self, section: Section, frames: int) -> int:
        """Return how many pictures of a window of `frames` the autoencoder encodes."""
        ...

    def image_bytes(self, *, value: int) -> int:
        """Return the peak of encoding a picture for the network; 0: it has no such encoder."""
        ...

    def hearing_bytes(self, speakers: int, seconds: float) -> int:
        """Return the features of all voices, and the peak of encoding one."""
        ...


class WanCosts:
    """See `Costs`; Wan 2.1's image-to-video network with audio attention (`plugins/families/multitalk`)."""

    published = 4

    def __init__(self, configs: Mapping[str, Config]) -> None:
        """`configs`: of each part of the model."""
        self._configs, self._config = configs, configs["transformer"]
        config = self._config
        self.layers, self.width = int(config["num_layers"]), width(config)
        self.text_len = int(config["text_len"])
        self.inner = int(config["ffn_dim"])
        self.largest_layer = self.width * self.inner
        self.channels = int(config["out_channels"])
        self.beside = int(config["in_channels"]) - self.channels

    def tokens(self, section: Section) -> int:
        """See `Costs`."""
        return activations.tokens(self._config, section.latents)

    def forward_work(
        self,
        section: Section,
        *,
        value: int,
        multiplied: Multiplied | None = None,
        compiled: bool = False,
        fused: bool = False,
        stream: int = 4,
    ) -> Forward:
        """See `Costs`."""
        return operations.forward_work(
            self._config,
            section.latents,
            value=value,
            speakers=section.speakers,
            multiplied=multiplied,
            compiled=compiled,
            fused=fused,
            stream=stream,
        )

    def forward_bytes(
        self, section: Section, *, value: int, adapted: bool, expanded: bool, stream: int, device: str
    ) -> int:
        """See `Costs`."""
        # A layer is expanded while one of the two wide tensors of the feed-forward is in memory.
        wide = self.tokens(section) * self.inner * value
        layer = max(0, self.largest_layer * value - wide) if expanded else 0
        peak = activations.forward_bytes(
            self._config,
            section.latents,
            value=value,
            speakers=section.speakers,
            adapted=adapted,
            stream=stream,
            device=device,
        )
        return peak + layer - self.conditions_bytes(section, value=value, passes=1)

    def conditions_bytes(self, section: Section, *, value: int, passes: int) -> int:
        """See `Costs`."""
        return activations.conditions_bytes(
            self._config, section.latents, value=value, speakers=section.speakers, passes=passes
        )

    def cache_bytes(self, section: Section, cache: StepCache | None, *, value: int, passes: int) -> int:
        """See `Costs`."""
        return activations.cache_bytes(self._config, section.latents, cache=cache, passes=passes)

    def encoded_frames(self, section: Section, frames: int) -> int:
        """Return all: the picture, and grey pictures for the others."""
        return frames

    def image_bytes(self, *, value: int) -> int:
        """See `Costs`."""
        return activations.image_bytes(self._configs["image_encoder"], value=value)

    def hearing_bytes(self, speakers: int, seconds: float) -> int:
        """See `Costs`."""
        config = self._configs["audio_encoder"]
        features = speakers * seconds * 25 * config["num_hidden_layers"] * config["hidden_size"] * 4
        return int(features) + activations.audio_bytes(config, seconds)


def costs_of(sizes: Sizes) -> Costs:
    """Return the costs of a model's network: its family's own, or those of MultiTalk's kind."""
    return sizes.costs or WanCosts(sizes.configs)

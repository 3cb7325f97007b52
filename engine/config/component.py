"""The bases of a component's config, and of a model family's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING


@dataclass
class ComponentConfig:
    """The base of every component's config: the component's name."""

    #: The component's name; set it by choosing the component (`group=name`).
    name: str = MISSING


@dataclass
class FamilyConfig(ComponentConfig):
    """The base of every model family's config, with what plans need to know of the family."""

    #: Parts of the weights; each is a folder, or files that are recognised.
    components: ClassVar[tuple[str, ...]] = (
        "transformer",
        "vae",
        "text_encoder",
        "tokenizer",
        "image_encoder",
        "audio_encoder",
    )
    #: Finds the parts in a folder: (folder, weights) -> (parts by name, missing files); None: as the engine does for
    #: Wan's (`engine.loading.layout.find_parts`).
    find_parts: ClassVar[Callable[..., tuple[Mapping[str, Any], tuple[str, ...]]] | None] = None
    #: Guidance branches that the network can run (`engine.components.BRANCHES`).
    branches: ClassVar[tuple[str, ...]] = ("cond", "drop_text", "drop_audio", "uncond")
    #: Config groups, or keys, of which only the default works, each with the reason; "group=name" refuses one choice.
    cannot: ClassVar[Mapping[str, str]] = {}
    #: Config groups, or keys, of which only some choices work: their names, and the reason.
    only: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {}
    #: Styles of continuation (`engine.config.ranges.STYLE`) that the family has.
    styles: ClassVar[tuple[str, ...]] = ("multitalk", "infinitetalk")
    #: Looks at the header of a LoRA for the family's network: (file, shapes of the network's stored tensors) -> how
    #: they match (`engine.data.LoraFit`); None: as the engine does for Wan's (`engine.loading.lora_names`).
    look_at_lora: ClassVar[Callable[..., Any] | None] = None
    #: Bytes of a LoRA's file in memory, beside the weights: (file, bytes of a value) -> bytes; None: those of the file.
    lora_bytes: ClassVar[Callable[..., int] | None] = None
    #: Whether its models take a source video in place of the picture (`engine.family.DubbingModel`).
    dubs: ClassVar[bool] = False

    def sizes(self, blocks: int | None = None) -> Any:
        """Return the sizes of the family's network (`engine.planning.parameters.Sizes`) for plans; needs no torch.

        `blocks`: blocks of the network, for rehearsals; None: all. A result of None: the sizes are read from the
        weights, or are those of `model.architecture`, as for networks of MultiTalk's kind.
        """
        return None

    def published_files(
        self, *, quant: str, adapter: str, loras: Sequence[str], blocks: int | None = None
    ) -> Mapping[str, Any] | None:
        """Return what rehearsals write in place of a model's files, by their paths in its folder.

        A path that ends in ".safetensors" has {tensor: (dtype, shape)}, dtypes as that format names them; one in
        ".json" has its value, and one in "/" is a tokenizer's folder, with None. `quant`, `adapter`: those of
        `engine.data.Weights`; `loras`: files of LoRAs; `blocks`: see `sizes`. A result of None: the files are those of
        MultiTalk's kind, or there are none to rehearse with.
        """
        return None

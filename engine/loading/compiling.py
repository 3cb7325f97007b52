"""torch.compile for the blocks of the network: one graph for each number of speakers, for all sizes.

The graph begins inside the hooks of a block, so offloading and step caches run as they do without compiling, and only
the arithmetic of a block is compiled. All blocks share their graphs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from engine.network.speakers import Speakers

#: Graphs of one block before torch gives up: modes of speakers times sets of active LoRAs. torch's default is 8.
MOST_GRAPHS = 64
#: Variables of the folders in which torch and Triton keep compiled kernels.
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}


@dataclass(frozen=True)
class Compiling:
    """How the blocks are compiled."""

    #: A backend of torch.compile: "inductor" generates kernels; "eager" and "aot_eager" only trace.
    backend: str = "inductor"
    #: Folder for compiled kernels; None: torch's own (TORCHINDUCTOR_CACHE_DIR).
    cache: Path | None = None


def compile_blocks(transformer: Any, how: Compiling) -> None:
    """Compile the forward of each block when it first runs; call it before other code hooks the blocks.

    Each graph is whole (`fullgraph`): code that cannot be traced is an error, not a slower graph.
    """
    # torch and its compiler are imported here: plans read this file, and most runs compile nothing.
    import torch
    import torch._dynamo as dynamo

    if how.cache is not None:
        use_folder(how.cache)
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MOST_GRAPHS)
    # Not `block.compile()`: it compiles the block's call, with the hooks of offloading and step caches.
    blocks = list(transformer.blocks)
    compiled = torch.compile(type(blocks[0]).forward, fullgraph=True, dynamic=False, backend=how.backend)
    for block in blocks:
        block.forward = functools.update_wrapper(
            functools.partial(_run, compiled, dynamo.maybe_mark_dynamic, block), block.forward
        )


def _run(
    compiled: Callable[..., Tensor],
    mark: Callable[[Tensor, int], None],
    block: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb: Tensor,
    rotary_emb: Any,
    audio_hidden_states: Tensor | list[Tensor],
    speakers: Speakers | list[Speakers | None] | None = None,
    shard: None = None,
) -> Tensor:
    # Only the numbers of tokens and of frames differ between windows. torch would find out with further graphs.
    mark(hidden_states, 1)
    for voices in audio_hidden_states if isinstance(audio_hidden_states, list) else [audio_hidden_states]:
        mark(voices, 0)
    for table in rotary_emb:
        mark(table, 1)
    for map_ in speakers if isinstance(speakers, list) else [speakers]:
        if map_ is not None:
            mark(map_.values, 1)
    return compiled(block, hidden_states, encoder_hidden_states, temb, rotary_emb, audio_hidden_states, speakers, shard)


def use_folder(folder: Path) -> None:
    """Keep compiled kernels of this process in `folder`, created by torch; must precede the first compilation."""
    for variable, below in _FOLDERS.items():
        os.environ[variable] = str(folder / below)

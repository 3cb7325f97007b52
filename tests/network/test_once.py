"""What is computed once a window, counted over a whole recorded video."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import golden_loops
import torch

from engine.network.embeddings import rotary_grid
from plugins.families.multitalk import transformer

if TYPE_CHECKING:
    import pytest


def test_conditions_are_embedded_once_a_window_and_branch(
    home_recordings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = golden_loops.load_loop(home_recordings, "loop_stream_3nfe")
    network, counts = loop.model.transformer, Counter[str]()
    made = rotary_grid

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *_: counts.update([name]))

    def make(*arguments: Any) -> Any:
        counts["rotary"] += 1
        return made(*arguments)

    monkeypatch.setattr(transformer, "rotary_grid", make)
    count("text", network.condition_embedder.text_embedder)
    count("image", network.condition_embedder.image_embedder)
    count("audio", network.audio_proj)
    count("time", network.condition_embedder.time_embedder)
    count("block", network.blocks[0])

    golden_loops.replay(loop, lambda *_: None)

    windows, branches, steps = loop.clips, 3, 6
    assert dict(counts) == {
        "text": windows * branches,
        "image": windows * branches,
        "audio": windows * branches,
        "rotary": 1,
        "time": windows * branches * steps,
        "block": windows * branches * steps,
    }


def test_no_tensor_of_a_forward_is_as_large_as_the_map_of_all_keys(tiny: Any) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = function(*args, **(kwargs or {}))
            outputs = output if isinstance(output, tuple | list) else [output]
            sizes.extend(tensor.numel() for tensor in outputs if isinstance(tensor, torch.Tensor))
            return output

    shape = (5, 32, 32)
    model, conditions = tiny.model(), tiny.conditions(2)
    masks = torch.zeros(3, *shape[1:])
    masks[0, :, :12], masks[1, :, 12:24], masks[2, :, 24:] = 1, 1, 1
    embedded = model.embed_conditions(
        shape, **conditions | {"audio_windows": torch.randn(2, 17, 5, 2, 4), "speaker_masks": masks}
    )

    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        model(torch.randn(1, 36, *shape), torch.tensor([500.0]), conditions=embedded)

    heads, tokens, frame = tiny.config["num_attention_heads"], 5 * 16 * 16, 16 * 16
    assert sizes
    # The largest that is there is the input.
    assert max(sizes) < heads * tokens * frame

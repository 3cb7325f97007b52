"""Is a plan's memory right? Random models of 1 to 2 GB are planned, then run and measured on a CPU, as JSON."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from engine import EngineService, Request, Speaker
from engine.bench.memory import write_voice
from engine.errors import EngineError, RequestError
from engine.loading.safetensors_reader import POPULATE_READ, advise
from engine.runtime.memory import forget_peak, status

#: Configs that were used while `engine.planning` was written, and others that were not.
FITTED = ("base",)
HELD_OUT = ("wide", "text", "half", "long", "int8", "lowest")


@dataclass(frozen=True)
class PlanCase:
    """A model and a request."""

    heads: int
    ffn_dim: int
    layers: int
    #: (height, width) in pixels, one of the sizes of model=tiny; frames of a window and of the video.
    size: tuple[int, int]
    frames: int
    base_dim: int = 32
    speakers: int = 1
    dtype: str = "float32"
    text: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def configs(self) -> dict[str, dict[str, Any]]:
        """Return the differences of the parts' configs from the defaults."""
        text = {"vocab_size": 8000, "d_model": 512, "d_ff": 1024, "num_layers": 4, "num_heads": 8} | self.text
        hidden = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
        return {
            "transformer": {
                "num_attention_heads": self.heads,
                "attention_head_dim": 64,
                "ffn_dim": self.ffn_dim,
                "num_layers": self.layers,
                "text_dim": text["d_model"],
                "text_len": 128,
                "image_dim": 256,
                "image_tokens": 50,
                "audio_layers": 3,
                "audio_channels": 256,
                "audio_intermediate_dim": 256,
                "audio_output_dim": 256,
                "audio_tokens": 16,
            },
            "vae": {"base_dim": self.base_dim},
            "text_encoder": {**text, "feed_forward_proj": "gated-gelu"},
            "image_encoder": {**hidden, "num_hidden_layers": 4, "patch_size": 32},
            "audio_encoder": {**hidden, "num_hidden_layers": 3},
        }


#: Vocabularies are small: of a mapped embedding only the rows of the prompt's words are read.
CASES = {
    "base": PlanCase(16, 2816, 16, (128, 128), 5, base_dim=24),
    "wide": PlanCase(24, 4096, 8, (160, 96), 5, speakers=2),
    "text": PlanCase(12, 2048, 14, (192, 320), 5, base_dim=16, text={"d_model": 1024, "d_ff": 4096, "num_layers": 9}),
    "half": PlanCase(
        16, 2816, 16, (128, 128), 5, dtype="bfloat16", text={"d_model": 1024, "d_ff": 4096, "num_layers": 16}
    ),
    "long": PlanCase(14, 3584, 16, (96, 160), 9, base_dim=24, overrides=("guidance.audio_scale=3",)),
    # Layers of more than 32 MiB, like the 14B's: the C library does not return smaller blocks when they are freed.
    "int8": PlanCase(46, 4096, 3, (128, 128), 5, base_dim=24, overrides=("quant=int8",)),
    "lowest": PlanCase(
        *(46, 4096, 2, (128, 128), 5),
        base_dim=24,
        text={"d_model": 2944, "d_ff": 4096, "num_layers": 3},
        overrides=("memory=lowest",),
    ),
}


def run(cases: str = ",".join(HELD_OUT)) -> dict[str, Any]:
    """Plan and measure each of `cases`, separated by commas; Linux only.

    The peak of resident memory is measured in a separate process, above its memory after all imports and with every
    library mapped. `error` is predicted / measured - 1.
    """
    names = cases.split(",")
    for name in names:
        if name not in CASES:
            raise RequestError(f"no case named {name!r}", field="bench plan", hint=", ".join(CASES))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _import_all()
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="multitalk-plan-") as folder:
            _in_process(lambda: _write(CASES[name], Path(folder)))  # noqa: B023 - it has run before the next turn
            rows.append({"case": name} | _in_process(lambda: _measure(CASES[name], Path(folder))))  # noqa: B023
    return {"bench": "plan", "fitted_on": FITTED, "allowed_error": 0.1, "runs": rows}


def _import_all() -> None:
    import peft  # noqa: F401
    import soxr  # noqa: F401
    import torch
    from diffusers import AutoencoderKLWan  # noqa: F401
    from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model  # noqa: F401

    with suppress(ImportError):
        import torchao.quantization  # noqa: F401 - an extra of "int8" alone

    import engine.pipeline  # noqa: F401
    from engine.plugin.manager import installed

    # A process with threads must not be forked.
    torch.set_num_threads(1)
    installed()


def _in_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of `work` in a fork of this process, which has imported everything and done nothing else."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
        except BaseException:  # noqa: BLE001 - printed here, because the child must not continue as if it were the parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        received = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise EngineError("a case could not be measured", field="bench plan", hint="its traceback is on stderr")
    result: dict[str, Any] = json.loads(received)
    return result


def _write(case: PlanCase, folder: Path) -> dict[str, Any]:
    import torch

    from engine.bench.family import network
    from engine.loading.random_weights import write_random_folder

    write_random_folder(folder / "tiny", case.configs(), getattr(torch, case.dtype), network())
    return {}


def request_of(case: PlanCase, folder: Path) -> tuple[list[str], Request]:
    """Return overrides and request of `case`, whose weights are in `folder`; writes picture and voice there."""
    height, width = case.size
    picture, voice = folder / "picture.png", folder / "voice.wav"
    Image.new("RGB", (width, height), "grey").save(picture)
    write_voice(voice, max(0.5, case.frames / 25))
    overrides = [
        "model=tiny",
        "source=volume",
        f"source.path={folder}",
        f"sink.folder={folder}",
        "device=cpu",
        f"dtype={case.dtype}",
        f"resolution={'small' if height * width < 20_000 else 'large'}",
        f"model.window={max(case.frames, 9)}",
        "continuation.frames=5",
        "sampler.steps=1",
        "guidance.text_scale=1",
        "guidance.audio_scale=1",
        *case.overrides,
    ]
    speakers = (Speaker(str(voice)),) * case.speakers
    return overrides, Request("a person talks", str(picture), speakers, frames=case.frames)


def _measure(case: PlanCase, folder: Path) -> dict[str, Any]:
    overrides, request = request_of(case, folder)
    service = EngineService(overrides)
    planned = service.plan(request).estimates
    if planned is None:
        raise EngineError("the case has no estimates", field="bench plan")
    _map_libraries()
    baseline = forget_peak()
    peaks: dict[str, int] = {}

    def above() -> int:
        return 1024 * (status("VmHWM") - baseline)

    service.generate(request, progress=lambda progress: peaks.update({progress.stage: above()}))
    peak = above()
    return {
        "overrides": overrides[4:],
        "parameters": dict(planned.parameters),
        "weights_bytes": sum(planned.weights.values()),
        "predicted_bytes": planned.host_memory_bytes,
        "measured_bytes": peak,
        "error": round(planned.host_memory_bytes / peak - 1, 4),
        "measured_until": peaks,
    }


def _map_libraries() -> None:
    """Map every page of the loaded libraries now, so that their first use does not count as memory of the work."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_, path = line.split(maxsplit=5)
        if ".so" in path and rights.startswith("r"):
            begin, end = (int(address, 16) for address in where.split("-"))
            if advise(begin, end, POPULATE_READ) == errno.EINVAL:
                raise EngineError(
                    "this kernel cannot map pages in advance", field="bench plan", hint="Linux 5.14 or later"
                )

"""What this device does with the 14B model's shapes on random weights, as JSON to be kept under docs/measured/."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.bench.transformer import build_inputs, build_model
from engine.errors import ConfigError, EngineError
from engine.fit.activations import decode_bytes, forward_bytes
from engine.fit.cards import Card, find_card
from engine.fit.seconds import codec_seconds, forward_seconds
from engine.fit.sizes import make_sizes, published_sizes
from engine.fit.work import codec_work, forward_work
from engine.multitalk.attention import class_scores
from engine.multitalk.compat import AttentionBackendName, dispatch_attention_fn
from engine.multitalk.memory import Profile, stream_blocks
from engine.registry import installed

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Shapes:
    """What is measured. `reduced`: too small to say anything of a GPU; it shows that the bench runs."""

    reduced: bool
    heads: int
    head_dim: int
    ffn_dim: int
    #: Blocks of the network whose blocks come one after the other.
    layers: int
    #: Tokens in (time, rows, columns), by resolution.
    grids: dict[str, Grid]
    #: Of the autoencoder: channels, frames, (height, width).
    base_dim: int
    frames: int
    size: tuple[int, int]

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


FULL = Shapes(False, 40, 128, 13824, 4, {"480p": (21, 28, 56), "720p": (21, 44, 80)}, 96, 17, (448, 896))
REDUCED = Shapes(True, 4, 32, 344, 3, {"reduced": (2, 6, 8)}, 8, 5, (32, 48))


def run(device: str = "auto", runs: int = 5) -> dict[str, Any]:
    """Measure `device`, "auto", "cuda" or "cpu"; a CPU gets reduced shapes, and the answer says so.

    Each figure is the median of `runs`, after one that does not count. Where the device is a card of the table, what
    a plan predicts stands beside it. A part that cannot run says why and the others go on. Raises ConfigError.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cuda", "cpu") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"no device {device!r} here", field="bench device", hint="auto, cuda or cpu")
    shapes = FULL if device == "cuda" else REDUCED
    bench = _Bench(device, shapes, max(1, runs))
    timed = (bench.products, bench.attention, bench.reference_map, bench.linears, bench.block)
    answer: dict[str, Any] = {"bench": "device", "reduced": shapes.reduced, "runs": bench.runs} | _machine(device)
    with torch.no_grad():
        for part in (*timed, bench.offload, bench.codec):
            answer[part.__name__] = _tried(part)
    return answer


class _Bench:
    def __init__(self, device: str, shapes: Shapes, runs: int) -> None:
        self.device, self.shapes, self.runs = device, shapes, runs
        self.dtype = torch.bfloat16
        self.card: Card | None = find_card(torch.cuda.get_device_name()) if device == "cuda" else None
        self._random = torch.Generator().manual_seed(0)

    # --- parts --------------------------------------------------------------------------------------------------------

    def products(self) -> dict[str, Any]:
        """Time the feed-forward's first product, with bfloat16 values."""
        shapes = self.shapes
        found = {}
        for name, grid in shapes.grids.items():
            length = _length(grid)
            x, weight = self.noise(length, shapes.dim), self.noise(shapes.ffn_dim, shapes.dim)
            seconds = self.seconds(lambda: F.linear(x, weight))  # noqa: B023 - it runs before the next turn
            operations = 2 * length * shapes.dim * shapes.ffn_dim
            found[name] = {"seconds": seconds, **self.rate(operations, seconds)}
        return found

    def attention(self) -> dict[str, Any]:
        """Time self-attention with every backend, and hold each to PyTorch's own."""
        found: dict[str, Any] = {}
        for name, grid in self.shapes.grids.items():
            length = _length(grid)
            query, key, value = (self.noise(1, length, self.shapes.heads, self.shapes.head_dim) for _ in range(3))
            own = self.attend("native", query, key, value)
            rows = found.setdefault(name, {})
            for backend in installed().attention.names():
                rows[backend] = _tried(lambda: self.backend(backend, own, query, key, value))  # noqa: B023 - as above
        return found

    def reference_map(self) -> dict[str, Any]:
        """Time the map of who looks at whom, for two speakers."""
        found = {}
        for name, grid in self.shapes.grids.items():
            model = self.model(1)
            _, _, conditions = build_inputs(model, grid, 2, self._random)
            length = _length(grid)
            query, key = (self.noise(1, length, self.shapes.heads, self.shapes.head_dim) for _ in range(2))
            assert conditions.speakers is not None
            speakers = conditions.speakers
            found[name] = {"seconds": self.seconds(lambda: class_scores(query, key, speakers))}  # noqa: B023 - as above
        return found

    def linears(self) -> dict[str, Any]:
        """Time one linear layer with weights in bfloat16, int8 and fp8, and how far each is from float32."""
        shapes = self.shapes
        exact = nn.Linear(shapes.dim, shapes.ffn_dim).to(self.device)
        x = self.noise(_length(next(iter(shapes.grids.values()))), shapes.dim)
        truth = exact(x.float())
        return {
            name: _tried(lambda: self.linear(name, exact, x, truth))  # noqa: B023 - it runs before the next turn
            for name in ("bfloat16", "int8", "fp8")
        }

    def block(self) -> dict[str, Any]:
        """Time a block of the network with one and two speakers, and its memory against what a plan counts."""
        found = {}
        for name, grid in self.shapes.grids.items():
            for speakers in (1, 2):
                row = self.forward(grid, speakers)
                found[f"{name}, {speakers} speaker{'s' if speakers > 1 else ''}"] = row
        return found

    def offload(self) -> dict[str, Any]:
        """Time forwards with blocks that come from the host against those of resident ones, and the way alone."""
        grid = next(iter(self.shapes.grids.values()))
        model = self.model(self.shapes.layers)
        inputs = build_inputs(model, grid, 1, self._random)
        resident = self.seconds(lambda: model(inputs[0], inputs[1], conditions=inputs[2]))
        blocks = sum(value.nbytes for block in model.blocks for value in block.parameters())
        moving = self.seconds(lambda: self.there_and_back(model.blocks))
        model.to("cpu")
        cuda = self.device == "cuda"
        streamer = stream_blocks(model, self.device, Profile("group-offload", streams=cuda))
        streamer.come()
        offloaded = self.seconds(lambda: model(inputs[0], inputs[1], conditions=inputs[2]))
        streamer.go()
        return {
            "blocks": self.shapes.layers,
            "block_bytes": blocks // self.shapes.layers,
            "resident_seconds": resident,
            "offloaded_seconds": offloaded,
            "there_and_back_seconds": moving,
            # 1: what is moved costs nothing; 0: it costs all of the way there. Where there is no way, null.
            "hidden": 1 - max(0.0, offloaded - resident) / (moving / 2) if cuda else None,
        }

    def codec(self) -> dict[str, Any]:
        """Time decoding, and its memory against what a plan counts."""
        from diffusers import AutoencoderKLWan

        from engine.multitalk.codec import WanCodec

        shapes, (height, width) = self.shapes, self.shapes.size
        codec = WanCodec(AutoencoderKLWan(base_dim=shapes.base_dim).eval().to(self.device))
        latents = torch.randn(16, 1 + (shapes.frames - 1) // 4, height // 8, width // 8, generator=self._random)
        configs = dict(published_sizes("wan-14b").configs) | {"vae": {"base_dim": shapes.base_dim}}
        config = make_sizes(configs).configs["vae"]
        seconds, peak = self.measured(lambda: codec.decode(latents))
        operations = codec_work(config, "decoder", shapes.frames, height, width)
        counted = decode_bytes(config, shapes.frames, height, width, device=self.device)
        predicted = None if self.card is None else codec_seconds(self.card, operations)
        return {
            "frames": shapes.frames,
            "size": [height, width],
            "seconds": seconds,
            "predicted_seconds": predicted,
            "tflops": operations / seconds / 1e12,
            "peak_bytes": peak,
            "predicted_bytes": counted,
        }

    # --- what they share ----------------------------------------------------------------------------------------------

    def model(self, layers: int) -> Any:
        shapes = self.shapes
        model = build_model(shapes.dim, shapes.ffn_dim, shapes.heads, layers, self.dtype, self._random)
        return model.to(self.device)

    def forward(self, grid: Grid, speakers: int) -> dict[str, Any]:
        model = self.model(1)
        latents, moment, conditions = build_inputs(model, grid, speakers, self._random)
        seconds, peak = self.measured(lambda: model(latents, moment, conditions=conditions))
        work = forward_work(model.config, conditions.latent_shape, value=2, speakers=speakers)
        predicted = None if self.card is None else forward_seconds(self.card, work)
        counted = forward_bytes(model.config, conditions.latent_shape, value=2, speakers=speakers)
        return {
            "tokens": _length(grid),
            "seconds": seconds,
            "predicted_seconds": predicted,
            **self.rate(work.operations, seconds),
            "peak_bytes": peak,
            "predicted_bytes": counted,
        }

    def backend(self, name: str, own: Tensor, *tensors: Tensor) -> dict[str, Any]:
        kernel = installed().attention.build_default(name).resolve(self.device)
        error = (self.attend(kernel, *tensors) - own).float().abs().max() / own.float().abs().max()
        seconds = self.seconds(lambda: self.attend(kernel, *tensors))
        length = tensors[0].shape[1]
        rate = self.rate(4 * length * length * self.shapes.dim, seconds)
        return {"kernel": kernel, "seconds": seconds, **rate, "largest_difference": float(error)}

    def attend(self, kernel: str, *tensors: Tensor) -> Tensor:
        attended: Tensor = dispatch_attention_fn(*tensors, backend=AttentionBackendName(kernel))
        return attended

    def linear(self, name: str, exact: nn.Linear, x: Tensor, truth: Tensor) -> dict[str, Any]:
        layer = nn.Sequential(nn.Linear(exact.in_features, exact.out_features, device=self.device))
        layer.load_state_dict({f"0.{key}": value for key, value in exact.state_dict().items()})
        layer = layer.to(self.dtype)
        if name != "bfloat16":
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

            chosen: Any = Int8WeightOnlyConfig if name == "int8" else Float8WeightOnlyConfig
            quantize_(layer, chosen(set_inductor_config=False))
        error = float((layer(x).float() - truth).norm() / truth.norm())
        return {"seconds": self.seconds(lambda: layer(x)), "relative_error": error}

    def there_and_back(self, module: nn.Module) -> None:
        module.to("cpu")
        module.to(self.device)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self.device, self.dtype)

    def rate(self, operations: int, seconds: float) -> dict[str, Any]:
        tflops = operations / seconds / 1e12
        share = None if self.card is None else tflops / self.card.bf16_tflops
        return {"tflops": tflops, "share_of_data_sheet": share}

    def measured(self, work: Callable[[], Any]) -> tuple[float, int | None]:
        """Return seconds, and the peak of temporary tensors where the device counts them."""
        if self.device != "cuda":
            return self.seconds(work), None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(work)
        return seconds, torch.cuda.max_memory_allocated() - before

    def seconds(self, work: Callable[[], Any]) -> float:
        return statistics.median(list(self.times(work))[1:])

    def times(self, work: Callable[[], Any]) -> Iterator[float]:
        for _ in range(self.runs + 1):
            began = time.perf_counter()
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()
            yield time.perf_counter() - began


def _tried(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except EngineError as error:
        return {"absent": str(error)}
    except Exception as error:  # noqa: BLE001 - a kernel may raise anything, and the other figures are wanted
        return {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"}


def _length(grid: Sequence[int]) -> int:
    return grid[0] * grid[1] * grid[2]


def _machine(device: str) -> dict[str, Any]:
    import diffusers

    found: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "memory_bytes": properties.total_memory,
        }
    return found

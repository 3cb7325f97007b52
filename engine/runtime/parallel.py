"""The processes that torchrun started for one job: how they come together, what rank 0 tells the others, how they end.

Rank 0 does everything that a single process does, and alone. The others wait for its word, load the transformer along
with it, and walk the same denoising loop on their part of the tokens.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from engine.components import CancelToken
from engine.config import ComponentConfig, Config, ParallelConfig
from engine.data import Conditions, Motion
from engine.errors import Cancelled, ConfigError, EngineError, ProcessLost, plain
from engine.multitalk.embeddings import Rotary
from engine.multitalk.sequence import together
from engine.multitalk.speakers import Speakers
from engine.multitalk.transformer import TransformerConditions
from engine.runtime.device import pick_device

#: Rank 0's word may take as long as a video's decoding and encoding; a process that ends is noticed at once.
_PATIENCE = timedelta(days=30)
#: Bytes of an error's line that other processes are told.
_LINE = 1024
#: How several processes are started.
COMMAND = "torchrun --nproc-per-node 2 -m engine generate ... parallel=ulysses"


@dataclass(frozen=True)
class LoadWeights:
    """Rank 0's word to load the weights."""


@dataclass(frozen=True)
class DenoiseWindow:
    """Rank 0's word to denoise a window along with it: what the loop takes, and the state of its generator."""

    config: Config
    conditions: Conditions
    noise: Tensor
    generator: Tensor


def message_classes() -> list[Any]:
    """Return the classes that a word may be made of: those of data, of conditions, and of configs, plugins' too."""
    classes: list[Any] = [LoadWeights, DenoiseWindow, Conditions, Motion, TransformerConditions, Rotary, Speakers]
    waiting: list[Any] = [ComponentConfig]
    waiting += [kind for kind in vars(sys.modules[Config.__module__]).values() if is_dataclass(kind)]
    while waiting:
        kind = waiting.pop()
        if kind not in classes:
            classes.append(kind)
            waiting += kind.__subclasses__()
    return classes


class Ranks:
    """One of the processes of a job; all of them say and do the same things in the same order.

    Methods raise ProcessLost where another process has ended.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        #: Among these the tokens are divided.
        self.group = dist.group.WORLD
        #: Whether the processes no longer wait for the same thing: then each can only end.
        self.broken = False
        self._control_group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def broadcast(self, message: Any) -> None:
        """Hand `message`, any object with tensors in it, from rank 0 to all others, which `receive` it."""
        buffer = io.BytesIO()
        torch.save(message, buffer)
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        # As numbers: what torch broadcasts as objects is unpickled, whatever it may run.
        with together():
            dist.broadcast(torch.tensor([len(content)]), src=0, group=self._control_group)
            dist.broadcast(content, src=0, group=self._control_group)

    def receive(self, device: str) -> Any:
        """Wait for rank 0's next word; its tensors are on `device`. Nothing but our own nouns can come out of it."""
        length = torch.zeros(1, dtype=torch.int64)
        with together():
            dist.broadcast(length, src=0, group=self._control_group)
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, src=0, group=self._control_group)
        with torch.serialization.safe_globals(message_classes()):
            return torch.load(io.BytesIO(content.numpy().tobytes()), map_location=device, weights_only=True)

    def agree(self, decision: bool) -> bool:
        """Return rank 0's decision."""
        flag = torch.tensor([decision])
        with together():
            dist.broadcast(flag, src=0, group=self._control_group)
        return bool(flag)

    def part_of(self, conditions: Conditions) -> Conditions:
        """Return this process' part of a window's conditions."""
        branches = {
            name: branch.split(self.group, self.rank, self.size) for name, branch in conditions.branches.items()
        }
        return replace(conditions, branches=branches)

    def destroy(self) -> None:
        """Leave the group; nothing can be said any more."""
        dist.destroy_process_group()
        # Its threads end with the last reference to it. One that outlives Python may abort the process.
        del self.group, self._control_group

    @contextmanager
    def synchronised(self) -> Iterator[None]:
        """Do what is inside on every process; raise EngineError where it failed on another one alone."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again when the others know
            failure = error
        except BaseException:
            self.broken = True
            raise
        lines = [torch.zeros(_LINE, dtype=torch.uint8) for _ in range(self.size)]
        mine = b"" if failure is None else (_line(failure) or type(failure).__name__).encode()[:_LINE]
        with together():
            own = torch.tensor(list(mine.ljust(_LINE, b"\0")), dtype=torch.uint8)
            dist.all_gather(lines, own, group=self._control_group)
        if failure is not None:
            raise failure
        for rank, line in enumerate(bytes(one.tolist()).rstrip(b"\0").decode("utf-8", "ignore") for one in lines):
            if line:
                raise EngineError(f"process {rank}: {line}", field="parallel")

    @contextmanager
    def denoising(self, cancel: CancelToken | None) -> Iterator[CancelToken]:
        """Yield a token with which all processes leave the denoising loop at the same place, when `cancel` of rank 0 is
        set. After any other error they are no longer together.
        """
        agreed = _SharedCancelToken(self, cancel)
        try:
            yield agreed
        except BaseException as error:
            # A hook may call a job off, too: of that the others know nothing.
            self.broken = not (isinstance(error, Cancelled) and agreed.stopped)
            raise


def require_ranks(config: ParallelConfig, ranks: Ranks | None) -> Ranks | None:
    """Return `ranks`. Raises ConfigError where the config asks for several processes and there is one."""
    if config.name != "none" and ranks is None:
        raise ConfigError("parallel=ulysses takes processes that torchrun starts", field="parallel", hint=COMMAND)
    return ranks


class _SharedCancelToken:
    def __init__(self, ranks: Ranks, cancel: CancelToken | None) -> None:
        self._ranks = ranks
        self._cancel = cancel
        self.stopped = False

    def is_set(self) -> bool:
        self.stopped = self._ranks.agree(self._cancel is not None and self._cancel.is_set())
        return self.stopped


@contextmanager
def join_group(config: ParallelConfig, device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes; leave it at the end.

    An error ends all processes, and the first one to have one tells it: rank 0 by raising it, another one in a line of
    its own; the others end with SystemExit. Raises ConfigError where there is no such group.
    """
    store = _find_store(config)
    ranks: Ranks | None = None
    try:
        ranks = _join(config, device, store)
        yield ranks
    except Exception as error:
        if isinstance(error, ProcessLost) and ranks is not None:
            ranks.broken = True
        if not _is_first_error(store):
            raise SystemExit(2) from None
        if config.rank and isinstance(error, EngineError):
            print(f"multitalk: error: process {config.rank}: {plain(str(error))}", file=sys.stderr)
            raise SystemExit(2) from error
        raise
    finally:
        if ranks is not None:
            _leave(ranks)


@contextmanager
def _rendezvous_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"the processes do not find each other: {why}", field="parallel", hint=COMMAND) from error


def _find_store(config: ParallelConfig) -> Any:
    with _rendezvous_errors():
        store, _, _ = next(iter(rendezvous("env://", config.rank or 0, config.size or 1)))
        return store


def _join(config: ParallelConfig, device: str, store: Any) -> Ranks:
    rank, size = config.rank or 0, config.size or 1
    take_device(device, config.local_rank or 0)
    # Words between processes go by the CPU in any case.
    backend = "cpu:gloo,cuda:nccl" if pick_device(device) == "cuda" else "gloo"
    with _rendezvous_errors():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return Ranks(rank, size)


def _is_first_error(store: Any) -> bool:
    """Say whether no other process has told an error before."""
    try:
        return int(store.add("multitalk/failed", 1)) == 1
    except RuntimeError:
        # Torchrun itself is gone, and with it whoever would read a second line.
        return True


def _leave(ranks: Ranks) -> None:
    if ranks.broken:
        # The others are waiting in the midst of something: that this process ends is what tells them.
        return
    try:
        if ranks.rank == 0:
            ranks.broadcast(None)
        ranks.destroy()
    except (RuntimeError, ProcessLost):
        # One of them is gone already.
        pass


def take_device(device: str, local_rank: int) -> None:
    """Let this process see one CUDA device, that of its number on this machine, if it may use any.

    Before CUDA starts: torch's own way to choose a device holds for one thread, and readers have others. Raises
    ConfigError where there are fewer.
    """
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if not count:
        return
    if local_rank >= count:
        raise ConfigError(
            f"there is no device for it, {count} for all processes of this machine",
            field="parallel",
            hint=f"start {count} processes here with --nproc-per-node",
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank] if names != [""] else str(local_rank)


def _line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, EngineError) else f"{type(error).__name__}: {text}"

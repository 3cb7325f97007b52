"""The process group that torchrun started for one job: joining it, messages of rank 0 to the others, errors, the end.

Rank 0 does everything that a single process does. The other ranks wait for its messages, load the transformer when it
does, and run the same denoising loop: on their part of the tokens, on their part of the guidance passes, or on both.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from engine.data import Conditions, Held, Motion
from engine.errors import Cancelled, ConfigError, EngineError, ProcessLost, plain
from engine.multitalk.embeddings import Rotary
from engine.multitalk.sequence import together
from engine.multitalk.speakers import Speakers
from engine.multitalk.transformer import TransformerConditions
from engine.runtime.device import pick_device

#: A message of rank 0 may take as long as decoding and encoding a video; a process that ends is noticed at once.
_PATIENCE = timedelta(days=30)
#: Most bytes of an error message that is sent to other processes.
_LINE = 1024
#: How several processes are started.
COMMAND = "torchrun --nproc-per-node 2 -m engine generate ... parallel=ulysses"


@dataclass(frozen=True)
class LoadWeights:
    """Message of rank 0: load the weights."""


@dataclass(frozen=True)
class DenoiseWindow:
    """Message of rank 0: denoise a window, with the inputs of the loop and the state of its random generator."""

    config: Config
    conditions: Conditions
    noise: Tensor
    generator: Tensor


def message_classes() -> list[Any]:
    """Return the classes that a message may contain: those of data, conditions and configs, also of plugins."""
    classes: list[Any] = [LoadWeights, DenoiseWindow, Conditions, Motion, Held, TransformerConditions, Rotary, Speakers]
    waiting: list[Any] = [ComponentConfig]
    waiting += [kind for kind in vars(sys.modules[Config.__module__]).values() if is_dataclass(kind)]
    while waiting:
        kind = waiting.pop()
        if kind not in classes:
            classes.append(kind)
            waiting += kind.__subclasses__()
    return classes


class Ranks:
    """This process in the process group of a job. All processes must call the same methods in the same order.

    Methods raise ProcessLost if another process has ended.
    """

    def __init__(self, rank: int, size: int, groups: int = 1) -> None:
        """Divide `size` processes into `groups`: guidance passes are divided among groups, tokens within each."""
        self.rank = rank
        self.size = size
        self.groups = groups
        #: Processes of one group; this process's group, and its place in it.
        self.sharing = size // groups
        self.group_index, self.place = divmod(rank, self.sharing)
        #: The process group over which the tokens are divided, and that of the processes of this place in all groups.
        self.group = self._one_of([range(first, first + self.sharing) for first in range(0, size, self.sharing)])
        self.across = self._one_of([range(place, size, self.sharing) for place in range(self.sharing)])
        #: Whether the processes are out of step; then each of them can only end.
        self.broken = False
        self._control_group = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def _one_of(self, divisions: Sequence[range]) -> Any:
        """Return the process group of the division that contains this process; all processes make all of them."""
        if len(divisions) == 1:
            return dist.group.WORLD
        made = [dist.new_group(list(ranks)) for ranks in divisions]
        return next(group for group, ranks in zip(made, divisions, strict=True) if self.rank in ranks)

    def broadcast(self, message: Any) -> None:
        """Send `message`, any object with tensors, from rank 0 to all others, which call `receive`."""
        buffer = io.BytesIO()
        torch.save(message, buffer)
        content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        # As a byte tensor, because torch would unpickle objects without restrictions.
        with together():
            dist.broadcast(torch.tensor([len(content)]), src=0, group=self._control_group)
            dist.broadcast(content, src=0, group=self._control_group)

    def receive(self, device: str) -> Any:
        """Wait for rank 0's next message, with its tensors on `device`. Only `message_classes` are unpickled."""
        length = torch.zeros(1, dtype=torch.int64)
        with together():
            dist.broadcast(length, src=0, group=self._control_group)
            content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, src=0, group=self._control_group)
        with torch.serialization.safe_globals(message_classes()):
            return torch.load(io.BytesIO(content.numpy().tobytes()), map_location=device, weights_only=True)

    def agree(self, decision: bool) -> bool:
        """Return rank 0's decision on all processes."""
        flag = torch.tensor([decision])
        with together():
            dist.broadcast(flag, src=0, group=self._control_group)
        return bool(flag)

    def part_of(self, conditions: Conditions) -> Conditions:
        """Return this process's part of a window's conditions."""
        if self.sharing == 1:
            return conditions
        branches = {
            name: branch.split(self.group, self.place, self.sharing) for name, branch in conditions.branches.items()
        }
        return replace(conditions, branches=branches)

    def own(self, branches: Sequence[str]) -> list[str | None]:
        """Return the passes of this process's group, in their order; None where it only waits for the others.

        A group without any computes the first pass, whose result is not used: a step cache decides in every process.
        """
        most = -(-len(branches) // self.groups)
        own: list[str | None] = list(branches[self.group_index :: self.groups]) or [branches[0]]
        return own + [None] * (most - len(own))

    def gather(self, predictions: Mapping[str, Tensor], branches: Sequence[str]) -> dict[str, Tensor]:
        """Return the predictions of all passes, of which `predictions` has those of this process's group."""
        own = self.own(branches)
        like = next(iter(predictions.values()))
        mine = torch.stack([torch.zeros_like(like) if name is None else predictions[name] for name in own])
        gathered = [torch.empty_like(mine) for _ in range(self.groups)]
        with together():
            dist.all_gather(gathered, mine, group=self.across)
        return {name: gathered[index % self.groups][index // self.groups] for index, name in enumerate(branches)}

    def destroy(self) -> None:
        """Destroy the process group; no messages are possible afterwards."""
        dist.destroy_process_group()
        # Its threads end with the last reference to the group. A thread that outlives Python may abort the process.
        del self.group, self.across, self._control_group

    @contextmanager
    def synchronised(self) -> Iterator[None]:
        """Wait at the end of the block for all processes; raise EngineError if it failed on another process."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again after the others were informed
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
        """Yield a token with which all processes leave the denoising loop at the same step once rank 0's `cancel` is
        set. After any other error the processes are out of step.
        """
        agreed = _SharedCancelToken(self, cancel)
        try:
            yield agreed
        except BaseException as error:
            # A hook may raise Cancelled, too, without the others knowing.
            self.broken = not (isinstance(error, Cancelled) and agreed.stopped)
            raise


def groups_of(parallel: ParallelConfig) -> int:
    """Return the number of groups of processes. Raises ConfigError if they cannot be of one size."""
    size = parallel.size or 1
    groups = 1 if parallel.name != "guidance" else parallel.groups or size
    if size % groups:
        raise ConfigError(
            f"{size} processes cannot be divided into {groups} groups",
            field="parallel.groups",
            hint=f"give a divisor of {size}, or start a multiple of {groups} processes",
        )
    return groups


def require_ranks(config: ParallelConfig, ranks: Ranks | None) -> Ranks | None:
    """Return `ranks`. Raises ConfigError if the config asks for several processes and there is only one."""
    if config.name != "none" and ranks is None:
        what = f"parallel={config.name} needs processes started by torchrun"
        raise ConfigError(what, field="parallel", hint=COMMAND.replace("ulysses", config.name))
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
    """Join the process group of torchrun's environment; leave it at the end.

    An error ends all processes. Only the process with the first error reports it: rank 0 raises it, another rank prints
    one line; the others end with SystemExit. Raises ConfigError if there is no such group.
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
        raise ConfigError(f"the processes cannot connect: {why}", field="parallel", hint=COMMAND) from error


def _find_store(config: ParallelConfig) -> Any:
    with _rendezvous_errors():
        store, _, _ = next(iter(rendezvous("env://", config.rank or 0, config.size or 1)))
        return store


def _join(config: ParallelConfig, device: str, store: Any) -> Ranks:
    rank, size = config.rank or 0, config.size or 1
    take_device(device, config.local_rank or 0)
    # Messages between processes always use the CPU.
    backend = "cpu:gloo,cuda:nccl" if pick_device(device) == "cuda" else "gloo"
    with _rendezvous_errors():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return Ranks(rank, size, groups_of(config))


def _is_first_error(store: Any) -> bool:
    """Return whether no other process has reported an error before."""
    try:
        return int(store.add("multitalk/failed", 1)) == 1
    except RuntimeError:
        # torchrun itself has ended, so nobody reads a second message.
        return True


def _leave(ranks: Ranks) -> None:
    if ranks.broken:
        # The other ranks are blocked in a collective; they notice when this process exits.
        return
    try:
        if ranks.rank == 0:
            ranks.broadcast(None)
        ranks.destroy()
    except (RuntimeError, ProcessLost):
        # One of the processes has ended already.
        pass


def take_device(device: str, local_rank: int) -> None:
    """Let this process see only the CUDA device with its local rank, if it may use any.

    Must be called before CUDA starts. torch's own way to choose a device applies to one thread only, but readers use
    several. Raises ConfigError if there are not enough devices.
    """
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if not count:
        return
    if local_rank >= count:
        raise ConfigError(
            f"there is no device for this process: this machine has {count}",
            field="parallel",
            hint=f"start {count} processes here with --nproc-per-node",
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank] if names != [""] else str(local_rank)


def _line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, EngineError) else f"{type(error).__name__}: {text}"

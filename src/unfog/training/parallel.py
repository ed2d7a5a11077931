"""Several processes that train, sample or measure together, as ``torchrun`` starts them.

A ``World`` is a value: which process this is, of how many, and on which device. One process alone is a world too, in
which nothing is communicated, so that no code has to ask::

    with joined() as world:
        start, stop = world.part(count)  # of things that are numbered 0 .. count - 1
        ...

Process 0 leads: it alone writes and speaks. What is known to it alone, such as what a folder holds, is decided by it
for all (``World.led``): processes that decide for themselves may decide differently, and then wait for each other for
ever.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unfog.diffusion.checks import require

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others. Long, for one of them may be decoding a large data set meanwhile; a process
that has died is noticed at once, by its connections."""

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class LeaderError(RuntimeError):
    """What process 0 did for all failed; it tells of it itself."""


@dataclass(frozen=True)
class World:
    """The processes that work together, seen from one of them.

    Attributes:
        device: where this process computes.
        rank: number of this process, in [0, size).
        size: how many there are.
        local_rank: number of this process among those of its machine.
        backend: by which torch communicates; None for one process.
        restarts: whether the launcher starts the processes again after one has failed.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    backend: str | None = None
    restarts: bool = False

    def __post_init__(self) -> None:
        require(
            self.size >= 1 and 0 <= self.local_rank <= self.rank < self.size,
            f"0 <= local rank <= rank < size of the world, got {self.local_rank}, {self.rank} and {self.size}",
        )

    @staticmethod
    def alone(device: torch.device | str = "cpu") -> "World":
        """Return the world of one process."""
        return World(torch.device(device))

    @staticmethod
    def of_environment(environment: Mapping[str, str] | None = None) -> "World":
        """Return the world that ``torchrun`` describes in the environment; alone where it says nothing.

        Args:
            environment: variables by name; those of this process unless given.

        Raises:
            ValueError: if variables are missing or are no numbers that fit each other, or this machine has fewer CUDA
                devices than processes.
        """
        given = os.environ if environment is None else environment
        cuda = torch.cuda.is_available()
        if "RANK" not in given and "WORLD_SIZE" not in given:
            return World.alone("cuda" if cuda else "cpu")
        missing = [name for name in _VARIABLES if name not in given]
        require(not missing, f"{', '.join(_VARIABLES)} as torchrun sets them; missing {', '.join(missing)}")
        rank, size, local, restarts = (
            _whole(name, given.get(name, "0"))
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_MAX_RESTARTS")
        )
        count = torch.cuda.device_count() if cuda else 0
        require(
            not cuda or local < count,
            f"at most one process for each of the {count} CUDA devices of this machine, got a process with the local "
            f"rank {local}; set --nproc-per-node to {count} or fewer",
        )
        return World(
            device=torch.device("cuda", local) if cuda else torch.device("cpu"),
            rank=rank,
            size=size,
            local_rank=local,
            # Flags, objects and pictures travel between processors, whatever the networks run on.
            backend=None if size == 1 else "cpu:gloo,cuda:nccl" if cuda else "gloo",
            restarts=restarts > 0,
        )

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> tuple[int, int]:
        """Return which of ``count`` things are this process's: ``start`` and ``stop``.

        Parts are contiguous, in the order of ranks, and as equal as can be, the first ones being longer by one: 10 over
        4 are 3, 3, 2 and 2.
        """
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return start, start + each + (self.rank < more)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes, the same bits in each of them, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.largest(0)

    def follow_(self, *tensors: Tensor) -> None:
        """Replace tensors by those of process 0, those of one dtype in one message."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            packed = torch.cat([tensor.reshape(-1).to(self.device) for tensor in alike])
            dist.broadcast(packed, 0)
            for tensor, values in zip(alike, torch.split(packed, [tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def led(self, call: Callable[[], T]) -> T:
        """Let process 0 do something, and return its answer in every process.

        Raises:
            LeaderError: in the other processes, if it failed; process 0 raises what happened.
        """
        if self.size == 1:
            return call()
        failure: Exception | None = None
        told: list[tuple[T | None, str | None]] = [(None, None)]
        if self.leads:
            try:
                told = [(call(), None)]
            except Exception as error:
                failure, told = error, [(None, f"{type(error).__name__}: {error}")]
        dist.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        answer, reason = told[0]
        if reason is not None:
            raise LeaderError(f"process 0 failed for all: {reason}")
        return answer  # type: ignore[return-value]  # None is what the call answered

    def everyone(self, value: T) -> list[T]:
        """Return the processes' values, in the order of ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let the first process of each machine go ahead, and the others follow: they find in a cache what it made."""
        if self.local_rank > 0:
            self.wait()
        try:
            yield
        finally:
            # Also where it fails, for the others must not wait for ever; they come upon the same failure.
            if self.local_rank == 0:
                self.wait()

    def gathered(self, part: Tensor | None, count: int) -> Tensor | None:
        """Return the parts of ``count`` things in process 0, in order, and None in the others.

        Args:
            part: what this process has of them, ``(stop - start, ...)`` on the CPU; None where its part is empty.
            count: of all, at least 1.
        """
        if self.size == 1:
            return part
        if not self.leads:
            if part is not None:
                dist.send(part.contiguous(), 0)
            return None
        assert part is not None, "parts that are longer by one come first"
        whole = part.new_empty((count, *part.shape[1:]))
        for rank in range(self.size):
            start, stop = World(self.device, rank, self.size).part(count)
            if rank == 0:
                whole[start:stop] = part
            elif start < stop:
                dist.recv(whole[start:stop], rank)
        return whole


def _whole(name: str, text: str) -> int:
    require(text.isdecimal(), f"a whole number in {name}, got {text!r}")
    return int(text)


def _fresh(store: Any, rank: int, size: int) -> Any:
    """Return a view of a store in which nothing is left from processes before these.

    torchrun keeps its store when it starts processes again, and in it the addresses of those that have died: who reads
    one before the new process has written its own waits for the dead (observed with torch 2.13). How often it has
    restarted cannot tell them apart, for each machine counts for itself. So process 0 makes a name up, and tells it to
    those who ask under names of their own, which were never used before.
    """
    name = secrets.token_hex(8)
    if rank > 0:
        store.set(f"unfog/asks/{rank}", name)
        told = store.get(f"unfog/answer/{name}").decode()
        store.set(f"unfog/heard/{told}/{rank}", "")
        return dist.PrefixStore(f"unfog/{told}", store)  # type: ignore[attr-defined]
    left, deadline = set(range(1, size)), time.monotonic() + PATIENCE.total_seconds()
    while left:
        for other in left:
            if store.check([f"unfog/asks/{other}"]):
                store.set(f"unfog/answer/{store.get(f'unfog/asks/{other}').decode()}", name)
        left = {other for other in left if not store.check([f"unfog/heard/{name}/{other}"])}
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(left)} of {size} did not come within {PATIENCE}")
        time.sleep(0.01)
    return dist.PrefixStore(f"unfog/{name}", store)  # type: ignore[attr-defined]


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, and leave them at the end; alone where there are no others.

    A process group that exists already is used, and left as it is.

    Raises:
        ValueError: as ``World.of_environment``.
    """
    world = World.of_environment()
    if world.device.type == "cuda" and world.size > 1:
        torch.cuda.set_device(world.device)
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
    dist.init_process_group(
        world.backend, store=_fresh(store, rank, size), rank=rank, world_size=size, timeout=PATIENCE
    )
    yield world
    # After a failure nothing is waited for: the process ends, and that is what tells the others.
    dist.destroy_process_group()

"""Evaluation by several processes: the first goes its way as ever, and all take the batches of its loops in turns.

Batches are those of one process, whatever the number of processes, and results come back in their order: what is made
of them has the same bits. Everything goes over gloo, between processors, whatever the networks run on.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.base.batches import Batches, Compute, Layers, Piece, Task, in_batches
from benchmarks.base.errors import first_line
from benchmarks.storage.tensors import digest

IDLE, WEIGHTS, END = "idle", "weights", "end"
"""What a process is told in place of a piece: nothing to do this time, new weights of the model come, leave."""
WAIT = timedelta(days=30)
"""What processes wait for each other: the first may be long over what it does alone. Where one ends, so do all."""


@dataclass(frozen=True)
class Failed:
    """What went wrong in a process, in place of its results."""

    said: str


class SharedBatches(Batches):
    """Loops whose batches the processes of torch's default group compute together, one each at a time.

    For the first of them; the others `serve` it. Loops that are no `Task` are its own.
    """

    def __init__(self, model: nn.Module, group: Any) -> None:
        self.model, self.group, self.count = model, group, dist.get_world_size()
        self.told = ""  # digest of the weights that the others have

    def each(self, n: int, size: int, compute: Compute, start: int = 0) -> Iterator[Layers]:
        """The results of every batch from image `start` on, in order.

        Raises:
            RuntimeError: a batch failed in another process.
        """
        if not isinstance(compute, Task):
            yield from super().each(n, size, compute, start)
            return
        stretches = [(first, min(first + size, n)) for first in range(start, n, size)]
        if compute.name == "model":
            self._tell_weights()
        for first in range(0, len(stretches), self.count):
            yield from self._together(compute, stretches[first : first + self.count])

    def tell(self, message: object) -> None:
        """Give the other processes a message."""
        self._deal([message] * (self.count - 1))

    def _deal(self, messages: Sequence[object]) -> None:
        """Give each of the other processes its message."""
        dist.scatter_object_list([None], [None, *messages], src=0, group=self.group)

    def _tell_weights(self) -> None:
        """Give the others the model's weights and statistics, where they have others."""
        state = self.model.state_dict()
        now = digest(state)
        if now == self.told:
            return
        self.tell(WEIGHTS)
        for name in sorted(state):
            dist.broadcast(state[name].detach().cpu().contiguous(), 0, group=self.group)
        self.told = now

    def _together(self, task: Task, stretches: Sequence[tuple[int, int]]) -> list[Layers]:
        """The results of as many batches as there are processes, or fewer at the end."""
        pieces = [task.sent(*stretch) for stretch in stretches[1:]]
        self._deal([*pieces, *[IDLE] * (self.count - len(stretches))])
        found: list[Any] = [None] * self.count
        try:
            own = task(*stretches[0])
        finally:  # they answer whatever happens here
            dist.gather_object(None, found, dst=0, group=self.group)
        for index, one in enumerate(found):
            if isinstance(one, Failed):
                raise RuntimeError(f"rank {index} of {self.count}: {one.said}")
        return [own, *found[1 : len(stretches)]]


@contextmanager
def shared_batches(model: nn.Module) -> Iterator[Batches]:
    """Inside this block, which the first process of a default group runs, the others take batches of its loops.

    `model` is the one whose loops they are. Without a group this process is alone.
    """
    if not dist.is_initialized():
        yield in_batches
        return
    batches = SharedBatches(model, _new_group())
    yield batches
    batches.tell(END)


def serve(networks: Mapping[str, Callable[[], nn.Module]]) -> None:
    """Compute what the first process asks for, with networks that are opened when they are needed, until it ends.

    The networks are in evaluation mode; the model's weights are those of the first process.
    """
    group, opened = _new_group(), dict[str, nn.Module]()

    def network(name: str) -> nn.Module:
        if name not in opened:
            opened[name] = networks[name]()
        return opened[name]

    while (asked := _received(group)) != END:
        if asked == WEIGHTS:
            _receive_weights(network("model"), group)
            continue
        answer = _answer(asked, network) if isinstance(asked, Piece) else None
        dist.gather_object(answer, None, dst=0, group=group)


def _new_group() -> Any:
    return dist.new_group(backend="gloo", timeout=WAIT)


def _received(group: Any) -> object:
    received: list[Any] = [None]
    dist.scatter_object_list(received, None, src=0, group=group)
    return received[0]


def _receive_weights(model: nn.Module, group: Any) -> None:
    """Take the first process's weights; what modules have made of the ones before is forgotten."""
    state: dict[str, Tensor] = model.state_dict()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        dist.broadcast(values, 0, group=group)
        state[name].copy_(values)
    model.train()
    model.eval()


def _answer(piece: Piece, network: Callable[[str], nn.Module]) -> Layers | Failed:
    """The results of a piece on the host, or why there are none."""
    try:
        return {name: values.cpu() for name, values in piece.of(network(piece.network)).items()}
    except Exception as error:  # whatever it is, the first process is waiting for an answer
        traceback.print_exc(file=sys.stderr)
        return Failed(first_line(error))

"""The processes that train one model together, seen from one of them, and what they say to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model: its `index` of `count`; by default it is alone.

    What it exchanges goes through torch's default process group, for which all call the same methods in the same order.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0

    def share(self, n: int) -> slice:
        """Which of `n` images are this process's: neighbours, none dropped, the first processes take one more."""
        each, more = divmod(n, self.count)
        start = self.index * each + min(self.index, more)
        return slice(start, start + each + (self.index < more))

    def summed(self, *values: float) -> list[float]:
        """The sum of each value over the processes, the same bits in all of them."""
        if self.count == 1:
            return list(values)
        return self.added(torch.tensor(values, dtype=torch.float64)).tolist()

    def told(self, *values: float) -> list[float]:
        """The values of the first process."""
        return self.summed(*(value if self.first else 0.0 for value in values))

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in one of them."""
        return self.summed(float(flag))[0] > 0

    def added(self, values: Tensor) -> Tensor:
        """`values`, in place the sum over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def spread(self, tensor: Tensor) -> None:
        """Put the first process's values into `tensor`."""
        if self.count > 1:
            dist.broadcast(tensor, 0)

    def whole(self, own: Tensor, n: int) -> Tensor:
        """The rows (n, ...) of all processes, of which `own` are those of `share(n)`.

        A gradient reaches one's own rows alone, `count` times as large: the mean of the processes' gradients of
        parameters, which `DistributedDataParallel` takes, is then that of one process with all rows.
        """
        share = self.share(n)
        rows = own.new_zeros(n, *own.shape[1:])
        rows[share] = own.detach()
        self.added(rows)
        scaled = own * 1
        if scaled.requires_grad:
            scaled.register_hook(lambda gradient: gradient * self.count)
        return torch.cat([rows[: share.start], scaled, rows[share.stop :]])


ALONE = Ranks()

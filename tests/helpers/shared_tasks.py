"""What processes compute of batches in tests; `python -m shared_tasks RANK COUNT PORT` serves the first of them."""

import sys

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.evaluation.shared import serve
from benchmarks.training.ranks import Ranks
from benchmarks.trials.ranks import join


def network():
    """A layer with weights of its own in every process, until it is told those of the first."""
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()


def scaled(net, images, start, end, *, by):
    """Of rows (B, 3) or none: the network's output, and who computed it."""
    rows = torch.arange(start, end)
    values = net(images if images is not None else rows[:, None].expand(-1, 3).float()) * by
    return {"rows": rows, "values": values.detach()}


def breaks(net, images, start, end, *, at):
    """Nothing of a batch that starts at `at`."""
    if start == at:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")
    return {"rows": torch.arange(start, end)}


def main(index, count, port):
    """Be one of several processes, to the end."""
    torch.manual_seed(index)
    join(Ranks(index, count), port, torch.device("cpu"))
    serve({"model": network})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

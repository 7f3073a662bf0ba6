"""Where images stay, and that batches are the same ones wherever they come from."""

import pytest
import torch

from benchmarks.data import batches
from benchmarks.training.supply import MOST_SHARE, batch_of, placed, stays, supplied

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_images_that_take_a_quarter_of_the_memory_stay_and_others_do_not():
    assert MOST_SHARE == 0.25
    assert stays(4 << 30, 16 << 30)
    assert not stays((4 << 30) + 1, 16 << 30)


def test_on_a_processor_they_are_drawn_from_where_they_are():
    assert placed(IMAGES, CPU) is IMAGES


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_batches_are_those_of_the_order(device):
    index = torch.tensor([3, 1, 39])
    chosen = batch_of(IMAGES, index, device)
    assert (chosen.device, chosen.dtype, chosen.shape) == (device, torch.uint8, (3, 1, 4, 4))
    supply, order = supplied(IMAGES, batches(40, 7, seed=1), CPU), batches(40, 7, seed=1)
    for _ in range(9):  # into the second epoch
        assert torch.equal(next(supply), IMAGES[next(order)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_their_way_to_a_gpu_are_those_of_the_order():
    device = torch.device("cuda", torch.cuda.current_device())
    supply, order = supplied(IMAGES, batches(40, 7, seed=1), device), batches(40, 7, seed=1)
    for _ in range(9):
        assert torch.equal(next(supply).cpu(), IMAGES[next(order)])

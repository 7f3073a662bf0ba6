"""Maps channel by channel and pixel by pixel, and draws from parameters that lie pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu.backend import CPU
from kernels.cpu.gaussian import by_pixels, to_pixels, to_planes
from kernels.cpu.library import why_missing
from kernels.reference.backend import REFERENCE

pytestmark = pytest.mark.skipif(why_missing() is not None, reason=f"no C kernels: {why_missing()}")
GENERATOR = torch.Generator().manual_seed(0)
SHAPES = ((2, 3, 5, 7), (1, 16, 16, 16), (3, 20, 9, 4), (2, 33, 1, 18))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_are_the_same_in_either_order(shape: tuple[int, int, int, int]) -> None:
    wide = random(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=torch.channels_last)
    for map in (wide, wide[:, : shape[1]], wide[:, shape[1] :]):
        assert by_pixels(map)
        planes = to_planes(map)
        assert planes.is_contiguous()
        assert torch.equal(planes, map)
        back = to_pixels(planes)
        assert back.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(back, map)


def test_maps_that_lie_otherwise_are_copied_as_they_are() -> None:
    map = random(2, 6, 8, 8)
    for one in (map, map[:, ::2], map.transpose(2, 3), map.contiguous(memory_format=torch.channels_last)[:, ::2]):
        assert not by_pixels(one)
        assert torch.equal(to_planes(one), one)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("external", [False, True])
def test_draws_by_pixels_are_those_of_the_reference(shape: tuple[int, int, int, int], external: bool) -> None:
    raw = random(shape[0], 2 * shape[1], *shape[2:]).contiguous(memory_format=torch.channels_last)
    mean, log_scale = raw.chunk(2, dim=1)
    seed, noise = torch.tensor(5), random(*shape).double() if external else None
    for temperature in (0.0, 0.7):
        drawn, wanted = (
            ops.gaussian_sample(
                mean, log_scale, seed=seed, group=2, temperature=temperature, first_sample=3, noise=noise
            )
            for ops in (CPU, REFERENCE)
        )
        within = 2e-6 * float(log_scale.exp().max())  # normals of the two differ by up to 1e-6
        torch.testing.assert_close(drawn, wanted, rtol=1e-6, atol=within)


def test_gradients_by_pixels_are_those_of_the_reference() -> None:
    given = [random(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
    found = []
    for ops in (CPU, REFERENCE):
        mean, log_scale, prior_mean, prior_log_scale = (half for one in given for half in one.chunk(2, dim=1))
        draw = ops.gaussian_sample_kl(mean, log_scale, prior_mean, prior_log_scale, seed=torch.tensor(1), group=0)
        found.append((draw.z, draw.kl, *torch.autograd.grad((draw.z**2).sum() + draw.kl.sum(), given)))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

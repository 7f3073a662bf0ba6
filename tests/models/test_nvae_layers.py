"""NVAE's layers against plain versions of themselves: fast paths, weight norm, flows, spectral norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.reference.backend import REFERENCE
from kernels.reference.network import gated_residual, power_iteration
from models.layers.convolutions import WeightBank, WeightNormConv2d, norm_swish
from models.layers.squeeze_excitation import SqueezeExcitation
from models.nvae.cells import FactorizedReduce, InvertedResidual, Upsample
from models.nvae.config import InvertedResidualOp, NVAEConfig
from models.nvae.flows import FlowPair
from models.nvae.spectral import NormPenalty

FLOAT64_ROUNDING = 1e-12  # a few hundred terms in another order
CONFIG = NVAEConfig(weight_norm=True)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def features(channels: int = 6, side: int = 4) -> Tensor:
    return torch.randn(3, channels, side, side, dtype=torch.float64)


def test_weight_norm_sets_the_norm_of_every_output_channel() -> None:
    conv = WeightNormConv2d(4, 5, 3).double()
    norms = conv.effective_weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, conv.log_weight_norm.exp().flatten(), rtol=1e-4, atol=0)  # floor of 1e-5
    close(conv(x := features(4)), F.conv2d(x, conv.effective_weight(), conv.bias, padding=1))


def test_weights_start_near_their_parameters() -> None:
    conv = WeightNormConv2d(8, 5, 3)
    torch.testing.assert_close(conv.effective_weight(), conv.weight, rtol=0.05, atol=0)  # + 0.01 on norms near 0.5


def test_bank_gives_the_weights_of_single_convolutions() -> None:
    mask = torch.ones(6, 4, 3, 3)
    mask[:, :, 2] = 0
    convs = nn.ModuleList(
        [
            WeightNormConv2d(4, 6, 3),
            WeightNormConv2d(4, 6, 3, mask=mask),
            WeightNormConv2d(36, 6, 1),
            WeightNormConv2d(6, 6, 5, groups=6),
        ]
    ).double()
    bank = WeightBank(convs, REFERENCE.network)
    plain = [conv.effective_weight().detach().clone() for conv in bank.convs]
    plain_gradient = torch.autograd.grad(
        sum(conv.effective_weight().sin().sum() for conv in bank.convs), convs[1].weight
    )
    with bank.installed():
        for conv, weight in zip(bank.convs, plain, strict=True):
            assert conv.installed is not None
            close(conv.effective_weight(), weight)
        gradient = torch.autograd.grad(sum(conv.effective_weight().sin().sum() for conv in bank.convs), convs[1].weight)
    close(gradient[0], plain_gradient[0])
    assert all(conv.installed is None for conv in bank.convs)


def test_data_initialisation_gives_centred_outputs_of_standard_deviation_a_fifth() -> None:
    conv = WeightNormConv2d(4, 6, 3, data_init=True).double().train()
    out = conv(3 + 2 * features(4, side=8))
    close(out.mean((0, 2, 3)), torch.zeros(6, dtype=torch.float64))
    spread = out.std((0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.2), rtol=1e-4, atol=0)  # floors of 1e-5
    assert conv(features(4, side=8)).mean().abs() > FLOAT64_ROUNDING


def test_loaded_weights_are_not_initialised_from_data() -> None:
    conv, other = (WeightNormConv2d(4, 6, 3, data_init=True).train() for _ in range(2))
    conv.load_state_dict(other.state_dict())
    conv(torch.randn(2, 4, 8, 8))
    torch.testing.assert_close(conv.log_weight_norm, other.log_weight_norm, rtol=0, atol=0)


@pytest.mark.parametrize("c_out", [8, 7])
def test_factorized_reduce_is_four_shifted_strided_convolutions(c_out: int) -> None:
    reduce, x = FactorizedReduce(6, c_out, CONFIG).double(), features()
    active = F.silu(x)
    shifted = [active, active[..., 1:, 1:], active[..., :, 1:], active[..., 1:, :]]
    convs = [reduce.conv_1, reduce.conv_2, reduce.conv_3, reduce.conv_4]
    parts = [F.conv2d(s, c.effective_weight(), c.bias, stride=2) for s, c in zip(shifted, convs, strict=True)]
    close(reduce(x), torch.cat(parts, dim=1))


def test_upsampling_commutes_with_its_convolution() -> None:
    upsample, x = Upsample(6, 3, CONFIG, REFERENCE).double(), features()
    conv = upsample[1]
    assert isinstance(conv, WeightNormConv2d)
    larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    close(upsample(x), F.conv2d(larger, conv.effective_weight()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups", [None, 2])
def test_inverted_residual_may_repeat_pixels_late(training: bool, groups: int | None) -> None:
    op = InvertedResidualOp(2, 5, groups)
    cell = InvertedResidual(op, 6, 3, "up", CONFIG, REFERENCE).double().train(training)
    plain = InvertedResidual(op, 6, 3, "up", CONFIG, REFERENCE).double().train(training)
    plain.load_state_dict(cell.state_dict())
    x = features()
    expected = plain_inverted_residual(plain, F.interpolate(x, scale_factor=2, mode="nearest"))
    close(cell(x), expected)
    for (name, buffer), twin in zip(cell.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(buffer, twin, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING), name


def plain_inverted_residual(cell: InvertedResidual, x: Tensor) -> Tensor:
    """The cell's layers one after the other on pixels that are already repeated."""
    norm, expand, depthwise, project, last = cell.conv[1:]
    for layers in (norm.bn, expand.conv, F.silu, depthwise.conv, F.silu, project, last.bn):
        x = layers(x)
    return x


@pytest.mark.parametrize("momentum", [0.05, None])
def test_statistics_before_repetition_are_those_after_it(momentum: float | None) -> None:
    before, after = (nn.BatchNorm2d(6, momentum=momentum).double().train() for _ in range(2))
    for _ in range(3):
        x = features()
        repeated = F.interpolate(x, scale_factor=2, mode="nearest")
        normed = norm_swish(before, x, REFERENCE, "none", 4)
        close(F.interpolate(normed, scale_factor=2, mode="nearest"), after(repeated))
    for one, other in zip(before.buffers(), after.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT64_ROUNDING, atol=0)


def test_gated_residual_is_its_formula() -> None:
    skip, branch = features(), features()
    gate = SqueezeExcitation(6).double()(branch)
    assert gate.shape == (3, 6, 1, 1)
    assert ((gate > 0) & (gate < 1)).all()
    close(gated_residual(skip, branch, gate, 0.1), skip + 0.1 * gate * branch)
    close(gated_residual(skip, branch, None, 0.1), skip + 0.1 * branch)


def test_a_flow_cell_preserves_volume_and_order() -> None:
    pair = FlowPair(2).double()
    z = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    for cell, flipped in ((pair.cell1, False), (pair.cell2, True)):
        jacobian = torch.autograd.functional.jacobian(cell, z).reshape(2, 3, 3, 2, 3, 3)
        if flipped:
            jacobian = jacobian.flip(1, 2, 4, 5)
        raster = jacobian.permute(1, 2, 0, 4, 5, 3).reshape(18, 18)  # pixels in raster order, channels within
        close(raster.diagonal(), torch.ones(18, dtype=torch.float64))
        assert raster.triu(1).abs().max() == 0
        assert raster.tril(-1).abs().max() > 0
    total = torch.autograd.functional.jacobian(pair, z).reshape(18, 18)
    close(torch.linalg.slogdet(total).logabsdet, torch.zeros((), dtype=torch.float64))


def test_spectral_term_converges_to_the_sum_of_top_singular_values() -> None:
    convs = nn.Sequential(WeightNormConv2d(4, 6, 3), WeightNormConv2d(4, 6, 3), nn.Conv2d(2, 5, 1)).double()
    penalty = NormPenalty(convs, REFERENCE.network)
    effective = {conv: getattr(conv, "effective_weight", lambda conv=conv: conv.weight)() for conv in convs}
    exact = sum(torch.linalg.matrix_norm(weight.flatten(1), ord=2) for weight in effective.values())
    for _ in range(100):
        estimate = penalty.spectral(effective)
    torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=0)  # converged as far as the gap of values allows
    gradient, expected = (torch.autograd.grad(v, convs[0].weight, retain_graph=True)[0] for v in (estimate, exact))
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)  # vectors converge slower than values


def test_power_iteration_never_exceeds_the_top_singular_value() -> None:
    matrices = torch.randn(3, 5, 7, dtype=torch.float64)
    top = torch.linalg.matrix_norm(matrices, ord=2)
    u, last = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=1), torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        u, v = power_iteration(matrices, u, 1, 1e-3)
        sigma = torch.einsum("nr,nrc,nc->n", u, matrices, v)
        assert (sigma >= last - FLOAT64_ROUNDING).all()
        assert (sigma <= top + FLOAT64_ROUNDING).all()
        last = sigma


def test_batch_norm_term_is_the_sum_of_largest_scales() -> None:
    norms = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(2))
    with torch.no_grad():
        norms[1].weight.copy_(torch.tensor([1.0, -4.0, 2.0]))  # type: ignore[union-attr]
    assert NormPenalty(norms, REFERENCE.network).batch_norm() == 5.0

"""NVAE's norm penalty: spectral norms of all convolutions, and largest scales of all batch norms."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.ops import NetworkOps

ROUNDS = 4
ROUNDS_AT_START = 40
NORM_FLOOR = 1e-3


class NormPenalty(nn.Module):
    """Sum of estimated top singular values of all effective weights + sum over batch norms of max |gamma|.

    Weights are read as (output channels, rest) matrices; those of equal shape are iterated together. The left
    vectors are kept between calls (40 rounds in the first, then 4) and carry no gradient: sigma = u^T W v. The state
    dict holds them once they have been used, so that a continued training goes on where it was.
    """

    def __init__(self, model: nn.Module, network: NetworkOps) -> None:
        super().__init__()
        self._network = network
        by_shape: dict[tuple[int, int], list[nn.Conv2d]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                by_shape[module.weight.shape[0], module.weight[0].numel()].append(module)
        self.convs_by_shape = dict(by_shape)
        self._norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.started = False
        for (rows, columns), convs in self.convs_by_shape.items():
            start = start_vectors(len(convs), rows, columns).to(convs[0].weight)
            self.register_buffer(_name(rows, columns), start, persistent=False)
        self.register_state_dict_post_hook(_save_vectors)
        self.register_load_state_dict_pre_hook(_load_vectors)

    def forward(self, effective: Mapping[nn.Module, Tensor]) -> Tensor:
        """Scalar penalty; `effective` holds the weights of convolutions whose weight is not their parameter."""
        device = next(self.buffers()).device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with exact:
            return self.spectral(effective) + self.batch_norm()

    def spectral(self, effective: Mapping[nn.Module, Tensor]) -> Tensor:
        """Sum of top singular values."""
        rounds = ROUNDS if self.started else ROUNDS_AT_START
        self.started = True
        weights = [effective.get(conv, conv.weight) for convs in self.convs_by_shape.values() for conv in convs]
        left = [u for shape in self.convs_by_shape for u in getattr(self, _name(*shape)).unbind()]
        return self._network.spectral_norms(weights, left, rounds, NORM_FLOOR)

    def batch_norm(self) -> Tensor:
        """Sum over batch norms of the largest |gamma|; 0 without batch norms."""
        by_width: dict[int, list[Tensor]] = defaultdict(list)
        for norm in self._norms:
            by_width[norm.num_features].append(norm.weight)
        if not by_width:
            return torch.zeros((), device=next(self.buffers()).device)
        return torch.cat([torch.stack(scales).abs().amax(1) for scales in by_width.values()]).sum()


def _save_vectors(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Add the left vectors to a state dict, once they have been used."""
    if isinstance(module, NormPenalty) and module.started:
        state.update({prefix + name: buffer.detach() for name, buffer in module.named_buffers()})


@torch.no_grad()
def _load_vectors(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take the left vectors out of a state that is being loaded, if it has them."""
    assert isinstance(module, NormPenalty)
    for name, buffer in module.named_buffers():
        if prefix + name in state:
            buffer.copy_(state.pop(prefix + name))
            module.started = True


def start_vectors(count: int, rows: int, columns: int) -> Tensor:
    """(count, rows) normalised Gaussian vectors, keyed on the shape."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(_name(rows, columns).encode()))
    start = torch.randn(count, rows, generator=generator, device="cpu")
    return F.normalize(start, dim=1, eps=NORM_FLOOR)


def _name(rows: int, columns: int) -> str:
    return f"u_{rows}x{columns}"

"""The plain NVAE's training step: balanced KL, norm penalty through autograd, Adamax on restacked parameters.

The design of the released code (Vahdat & Kautz 2021, and measurements of where it spends its time), kept on purpose
where it costs: the weights are stacked by shape for the spectral term in every step, whose gradient goes through
autograd; the optimizer stacks parameters, gradients and both moments in every step, four full copies, and points the
parameters at the result.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.baseline.layers import effective_weight
from benchmarks.speed.baseline.nvae import PlainNVAE

ROUNDS = 4
ROUNDS_AT_START = 40
NORM_FLOOR = 1e-3
BALANCE_OFFSET = 0.01
BETAS = (0.9, 0.999)

Matrices = tuple[int, int]
"""Rows and columns of the matrices that are iterated together."""


class PlainNormPenalty:
    """Sum of the estimated top singular values of all convolutions' effective weights, and of batch norms' scales.

    `left` holds the left singular vectors (N, rows) of the matrices of each shape, kept from step to step; a shape
    without them starts from Gaussian vectors with 40 rounds of power iteration.
    """

    def __init__(self, model: nn.Module) -> None:
        self._convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        self._norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self.left: dict[Matrices, Tensor] = {}

    def spectral(self) -> Tensor:
        """Scalar sum of u^T W v; u and v carry no gradient."""
        by_shape: dict[Matrices, list[Tensor]] = defaultdict(list)
        for conv in self._convs:
            matrix = effective_weight(conv).flatten(1)
            by_shape[matrix.shape[0], matrix.shape[1]].append(matrix)
        sums = []
        for shape, same in by_shape.items():
            matrices = torch.stack(same)
            u, v = self._iterate(shape, matrices)
            sums.append(torch.bmm(torch.bmm(u.unsqueeze(1), matrices), v.unsqueeze(2)).sum())
        return torch.stack(sums).sum()

    @torch.no_grad()
    def _iterate(self, shape: Matrices, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right singular vectors (N, rows), (N, columns) of (N, rows, columns) matrices."""
        rounds = ROUNDS if shape in self.left else ROUNDS_AT_START
        u = self.left.get(shape)
        if u is None:
            u = F.normalize(torch.randn_like(matrices[:, :, 0]), dim=1, eps=NORM_FLOOR)
        v = torch.empty(())
        for _ in range(rounds):
            v = F.normalize(torch.bmm(u.unsqueeze(1), matrices).squeeze(1), dim=1, eps=NORM_FLOOR)
            u = F.normalize(torch.bmm(matrices, v.unsqueeze(2)).squeeze(2), dim=1, eps=NORM_FLOOR)
        self.left[shape] = u
        return u, v

    def batch_norm(self) -> Tensor:
        """Scalar sum over batch norms of max |gamma|; 0 without batch norms."""
        by_size: dict[int, list[Tensor]] = defaultdict(list)
        for norm in self._norms:
            by_size[norm.num_features].append(norm.weight)
        largest = [torch.stack(same).abs().amax(1).sum() for same in by_size.values()]
        return torch.stack(largest).sum() if largest else torch.zeros(())


class StackedAdamax:
    """Adamax (Kingma & Ba 2015) with L2 weight decay, on stacks of the parameters of equal shape.

    g += d p; m = b1 m + (1 - b1) g; n = max(b2 n, |g| + eps); p -= lr / (1 - b1^t) m / n. Every step stacks p, g, m and
    n anew, and ends with parameters and moments as views of the stacks. Parameters without gradient stay as they are.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float, epsilon: float) -> None:
        self.learning_rate, self.weight_decay, self.epsilon = learning_rate, weight_decay, epsilon
        self._parameters = list(model.parameters())
        self._moments: dict[nn.Parameter, Tensor] = {p: torch.zeros_like(p) for p in self._parameters}
        self._maxima: dict[nn.Parameter, Tensor] = {p: torch.zeros_like(p) for p in self._parameters}
        self._steps = 0

    def zero_grad(self) -> None:
        """Drop all gradients, as torch's own optimizers do by default."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by one step."""
        self._steps += 1
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in self._parameters:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for parameters in by_shape.values():
            self._move(parameters)

    def _move(self, parameters: list[nn.Parameter]) -> None:
        """Move parameters of one shape."""
        values = torch.stack([p.data for p in parameters])
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        moments = torch.stack([self._moments[p] for p in parameters])
        maxima = torch.stack([self._maxima[p] for p in parameters])
        gradients = gradients.add(values, alpha=self.weight_decay)
        moments.mul_(BETAS[0]).add_(gradients, alpha=1 - BETAS[0])
        torch.maximum(maxima.mul_(BETAS[1]), gradients.abs().add_(self.epsilon), out=maxima)
        values.addcdiv_(moments, maxima, value=-self.learning_rate / (1 - BETAS[0] ** self._steps))
        for index, parameter in enumerate(parameters):
            parameter.data = values[index]
            self._moments[parameter], self._maxima[parameter] = moments[index], maxima[index]


class PlainTraining:
    """Training steps of a plain NVAE in the warm-up of its KL, where the rates of latent groups are balanced.

    Args:
        model: is put into training mode.
        learning_rate, weight_decay, epsilon: of Adamax; the published values.
        kl_weight: weight of the rate in the loss, in [0, 1); balancing belongs to weights below 1.
    """

    def __init__(
        self,
        model: PlainNVAE,
        learning_rate: float = 1e-2,
        weight_decay: float = 3e-4,
        epsilon: float = 1e-3,
        kl_weight: float = 0.5,
    ) -> None:
        self.model, self.kl_weight = model.train(), kl_weight
        self.penalty = PlainNormPenalty(model)
        self.optimizer = StackedAdamax(model, learning_rate, weight_decay, epsilon)
        self._alpha = _balancing_alpha(model.config.groups_fine_to_coarse).to(model.prior_ftr0)

    def step(self, x: Tensor) -> Tensor:
        """Loss () of images x (B, C, H, W) before the step that it makes."""
        self.optimizer.zero_grad()
        loss = self.loss(*self.model(x))
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, log_prob: Tensor, rates: list[Tensor]) -> Tensor:
        """Loss () of a pass: distortion + weight x balanced rates, and the norm penalty of the pass's weights."""
        loss = torch.mean(self.kl_weight * self.balanced_rate(rates) - log_prob)
        weight = self.model.config.norm_penalty_at(self.kl_weight)
        if not weight:
            return loss
        return loss + weight * self.penalty.spectral() + weight * self.penalty.batch_norm()

    def balanced_rate(self, rates: list[Tensor]) -> Tensor:
        """Sum over groups (B,) of the rates, each times its share of the mean rates over alpha (mean 1)."""
        by_group = torch.stack(rates, dim=1)  # (B, G)
        shares = (by_group.detach().abs().mean(0) + BALANCE_OFFSET) / self._alpha
        return (by_group * (shares / shares.mean())).sum(1)


def _balancing_alpha(groups_fine_to_coarse: tuple[int, ...]) -> Tensor:
    """Alpha (G,) of each group, coarse -> fine: 4^i / groups of the i-th resolution from the coarsest; least is 1."""
    coarse_to_fine = reversed(groups_fine_to_coarse)
    alpha = torch.tensor([4.0**level / groups for level, groups in enumerate(coarse_to_fine) for _ in range(groups)])
    return alpha / alpha.min()

"""How latents are used: rate per group, active units, collapsed groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.records.catalogue import COLLAPSED_RATE, measurement
from benchmarks.records.record import LatentGroupInfo, Measurement
from models.output import LatentGroup

ACTIVE_VARIANCE = 0.01  # Var_x(E[z given x]) of an active unit: Burda et al. 2015, section 5
ACTIVE_RATE = 0.01  # nats: mean rate of an active unit of a later group


@dataclass(frozen=True)
class GroupUsage:
    """Use of one latent group over images: `rate_sd` is the rate's standard deviation in nats/image.

    A channel is dead where none of its units is active; `LatentUsage.result` says when a unit is.
    """

    info: LatentGroupInfo
    rate_sd: float
    active_channels: tuple[int, ...]

    @property
    def dead_channels(self) -> tuple[int, ...]:
        """Indices of the channels that hold no active unit."""
        return tuple(sorted(set(range(self.info.channels)) - set(self.active_channels)))


class _Moments:
    """Mean and variance over rows that come in batches, float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self._n = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Take in (B, k) values."""
        rows = rows.detach().double()
        batch, mean = len(rows), rows.mean(dim=0)
        if not self._n:
            self._mean = self._squares = torch.zeros_like(mean)
        total = self._n + batch
        shift = mean - self._mean
        self._squares = self._squares + (rows - mean).square().sum(dim=0) + shift.square() * self._n * batch / total
        self._mean, self._n = self._mean + shift * batch / total, total

    @property
    def variance(self) -> Tensor:
        """(k,), over n - 1; 0 for one row."""
        return self._squares / max(1, self._n - 1)


class LatentUsage:
    """Running statistics of the latent groups over batches, in float64; a unit is one latent variable.

    usage = LatentUsage()
    for each batch: usage.update(model(x, draw).groups)
    infos = usage.result()
    """

    def __init__(self) -> None:
        self._n = 0
        self._shapes: list[torch.Size] = []
        self._rates: list[Tensor] = []  # per group, sum over images: () nats
        self._unit_rates: list[Tensor] = []  # per group, sum over images: (units,) nats
        self._first_means = _Moments()  # of the first group's posterior mean: (units,)
        self._image_rates = _Moments()  # of the rates: (groups,) nats

    def update(self, groups: Sequence[LatentGroup]) -> None:
        """Take in the groups of one batch, coarse -> fine."""
        if not groups:
            return
        if not self._shapes:
            self._start(groups)
        self._first_means.update(groups[0].posterior.mean.flatten(1))
        self._image_rates.update(torch.stack([group.rate for group in groups], dim=1))
        self._n += len(groups[0].z)
        for index, group in enumerate(groups):
            self._rates[index] += group.rate.detach().double().sum()
            self._unit_rates[index] += group.posterior.kl(group.prior).detach().double().flatten(1).sum(dim=0)

    def result(self) -> list[LatentGroupInfo]:
        """Shape, mean rate (nats per image) and active units of every group; empty if there are no groups.

        Active: in the first group Var_x(E[z given x]) > 0.01; in later groups a mean rate above 0.01 nats, because a
        collapsed fine unit inherits variance through its prior.
        """
        infos = []
        for index, shape in enumerate(self._shapes):
            height, width = (shape[1], shape[2]) if len(shape) == 3 else (1, 1)
            rate, active = float(self._rates[index]) / self._n, int(self._active(index).sum())
            infos.append(LatentGroupInfo(shape[0], height, width, rate, active, shape.numel()))
        return infos

    def groups(self) -> list[GroupUsage]:
        """`result` with the spread of the rate over images and the channels that hold an active unit."""
        spreads = self._image_rates.variance.sqrt().tolist() if self._shapes else []
        active = [self._active(index).unflatten(0, (shape[0], -1)) for index, shape in enumerate(self._shapes)]
        channels = [tuple(units.any(dim=1).nonzero().flatten().tolist()) for units in active]
        return [GroupUsage(*found) for found in zip(self.result(), spreads, channels, strict=True)]

    def _active(self, index: int) -> Tensor:
        """Which units (units,) of a group are active."""
        if index == 0:
            return self._first_means.variance > ACTIVE_VARIANCE
        return self._unit_rates[index] / self._n > ACTIVE_RATE

    def _start(self, groups: Sequence[LatentGroup]) -> None:
        self._shapes = [group.z.shape[1:] for group in groups]
        device = groups[0].z.device
        self._unit_rates = [torch.zeros(shape.numel(), dtype=torch.float64, device=device) for shape in self._shapes]
        self._rates = [torch.zeros((), dtype=torch.float64, device=device) for _ in groups]


def group_name(index: int, info: LatentGroupInfo) -> str:
    """The group's name in notes: "group 3 (8x4x4)", counted from 1, coarse -> fine."""
    return f"group {index + 1} ({info.channels}x{info.height}x{info.width})"


def collapsed_groups(infos: Sequence[LatentGroupInfo]) -> list[str]:
    """Names of the groups whose mean rate is below 0.01 nats."""
    return [
        group_name(index, info)
        for index, info in enumerate(infos)
        if info.rate is not None and info.rate < COLLAPSED_RATE
    ]


def latent_metrics(infos: Sequence[LatentGroupInfo], n: int) -> list[Measurement]:
    """`active_units` and `collapsed_groups` over `n` images, the collapsed ones named; nothing without groups."""
    if not infos:
        return []
    active, units = (sum(getattr(info, name) or 0 for info in infos) for name in ("active_units", "units"))
    collapsed = collapsed_groups(infos)
    note = f"collapsed: {', '.join(collapsed)}" if collapsed else ""
    return [
        measurement("active_units", float(active), n=n, details={"units": units}),
        measurement("collapsed_groups", float(len(collapsed)), n=n, note=note, details={"groups": len(infos)}),
    ]

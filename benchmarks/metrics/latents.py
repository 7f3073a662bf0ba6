"""How latents are used: rate per group, active units, collapsed groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.base.batches import Layers
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

    @staticmethod
    def of(rows: Tensor) -> Tensor:
        """Mean and sum of squares about it of (B, k) values: (2, k)."""
        rows = rows.detach().double()
        mean = rows.mean(dim=0)
        return torch.stack([mean, (rows - mean).square().sum(dim=0)])

    def add(self, moments: Tensor, batch: int) -> None:
        """Take in those of a batch, `of` its values."""
        mean, squares = moments
        if not self._n:
            self._mean = self._squares = torch.zeros_like(mean)
        total = self._n + batch
        shift = mean - self._mean
        self._squares = self._squares + squares + shift.square() * self._n * batch / total
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

    Batches are counted in any process by `usage_of`, and added here in their order.
    """

    def __init__(self) -> None:
        self._n = 0
        self._shapes: list[torch.Size] = []
        self._rates = torch.zeros(0, dtype=torch.float64)  # sum over images: (groups,) nats
        self._unit_rates: list[Tensor] = []  # per group, sum over images: (channels, height, width) nats
        self._first_means = _Moments()  # of the first group's posterior mean: (units,)
        self._image_rates = _Moments()  # of the rates: (groups,) nats

    def update(self, groups: Sequence[LatentGroup]) -> None:
        """Take in the groups of one batch, coarse -> fine."""
        self.add(usage_of(groups))

    def add(self, found: Layers) -> None:
        """Take in what `usage_of` says of a batch."""
        if not found:
            return
        batch, units = int(found["count"]), [found[f"units.{index}"] for index in range(len(found["rates"]))]
        if not self._shapes:
            self._shapes = [one.shape for one in units]
            self._unit_rates, self._rates = [torch.zeros_like(one) for one in units], torch.zeros_like(found["rates"])
        self._first_means.add(found["first_means"], batch)
        self._image_rates.add(found["image_rates"], batch)
        self._n += batch
        self._rates = self._rates + found["rates"]
        self._unit_rates = [before + one for before, one in zip(self._unit_rates, units, strict=True)]

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
        return self._unit_rates[index].flatten() / self._n > ACTIVE_RATE


def usage_of(groups: Sequence[LatentGroup]) -> Layers:
    """What a batch adds to `LatentUsage`, float64 on the CPU; nothing without groups."""
    if not groups:
        return {}
    rates = torch.stack([group.rate.detach() for group in groups], dim=1)
    found = {
        "count": torch.tensor(len(rates)),
        "first_means": _Moments.of(groups[0].posterior.mean.flatten(1)),
        "image_rates": _Moments.of(rates),
        "rates": torch.stack([group.rate.detach().double().sum() for group in groups]),
    }
    for index, group in enumerate(groups):
        unit_rates = group.posterior.kl(group.prior).detach().double().flatten(1).sum(dim=0)
        found[f"units.{index}"] = unit_rates.view(group.z.shape[1:])
    return {name: values.cpu() for name, values in found.items()}


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

"""VDVAE once more, from its keys and layer strings alone: slow, without the model's code."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Settings = Mapping[str, object]


class PlainVDVAE:
    """The last features and the KL (nats) of each layer and image, of weights by the published code's keys."""

    def __init__(self, weights: Mapping[str, Tensor], settings: Settings, mean: float, std: float) -> None:
        self.weights, self.mean, self.std = weights, mean, std
        self.enc, self.dec = str(settings["enc_blocks"]).split(","), str(settings["dec_blocks"]).split(",")
        pairs = [one.split(":") for one in str(settings["custom_width_str"]).split(",") if one]
        self.custom = {int(side): int(width) for side, width in pairs}
        self.settings = settings

    def width(self, side: int) -> int:
        return self.custom.get(side, int(self.settings["width"]))  # pyright: ignore[reportArgumentType]

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def block(self, name: str, x: Tensor) -> Tensor:
        for part in ("c1", "c2", "c3", "c4"):
            x = self.conv(f"{name}.{part}", 0.5 * x * (1 + torch.erf(x / 2**0.5)))
        return x

    def encoder(self, pixels: Tensor) -> dict[int, Tensor]:
        x = self.conv("encoder.in_conv", (pixels - self.mean) / self.std)
        seen, index = {x.shape[-1]: x}, 0
        for token in self.enc:
            side, _, pool = token.partition("d")
            count = 1 if pool else int(token.partition("x")[2] or 1)
            for _ in range(count):
                x = x + self.block(f"encoder.enc_blocks.{index}", x)
                index += 1
            if pool:
                out, k = int(side) // int(pool), int(pool)
                x = x.unflatten(3, (out, k)).unflatten(2, (out, k)).mean((3, 5))
            padding = x.new_zeros(len(x), self.width(x.shape[-1]) - x.shape[1], *x.shape[2:])
            seen[x.shape[-1]] = x = torch.cat((x, padding), 1)
        return seen

    def __call__(self, pixels: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        """From pixels (B, C, R, R) in 0-255."""
        seen, rates, index = self.encoder(pixels), [], 0
        sides = sorted({int(token.replace("m", "x").partition("x")[0]) for token in self.dec})
        biased = [side for side in sides if side <= int(self.settings["no_bias_above"])]  # pyright: ignore[reportArgumentType]
        states = {side: pixels.new_zeros(len(pixels), self.width(side), side, side) for side in sides}
        for number, side in enumerate(biased):
            states[side] = states[side] + self.weights[f"decoder.bias_xs.{number}"]
        for token in self.dec:
            mixed = token.partition("m")[2]
            side = int(token.replace("m", "x").partition("x")[0])
            for _ in range(1 if mixed else int(token.partition("x")[2] or 1)):
                x = states[side]
                if mixed:
                    factor = side // int(mixed)
                    coarse = states[int(mixed)][:, : x.shape[1]]
                    x = x + coarse.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
                states[side], rate = self.layer(index, x, seen[side], noise)
                rates.append(rate)
                index += 1
        last = states[pixels.shape[-1]] * self.weights["decoder.gain"] + self.weights["decoder.bias"]
        return last, torch.stack(rates)

    def layer(self, index: int, x: Tensor, seen: Tensor, noise: bool) -> tuple[Tensor, Tensor]:
        from original_vdvae import recipe_noise

        name = f"decoder.dec_blocks.{index}"
        mu_q, log_q = self.block(f"{name}.enc", torch.cat((x, seen), 1)).chunk(2, 1)
        prior = self.block(f"{name}.prior", x)
        zdim = mu_q.shape[1]
        mu_p, log_p, feature = prior[:, :zdim], prior[:, zdim : 2 * zdim], prior[:, 2 * zdim :]
        z = mu_q + (log_q.exp() * recipe_noise(index, mu_q.shape).to(x) if noise else 0)
        x = x + feature + self.conv(f"{name}.z_proj", z)
        rate = log_p - log_q - 0.5 + ((2 * log_q).exp() + (mu_q - mu_p) ** 2) / (2 * (2 * log_p).exp())
        return x + self.block(f"{name}.resnet", x), rate.sum((1, 2, 3))

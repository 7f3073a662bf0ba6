"""A model of one's own in forty lines, beside the vanilla VAE: equal images, the same test digits, a paired difference.

    python examples/own_model.py                (half a minute on one core, no download)

The model has two latent groups in place of one: a vector, and given that a map of 7x7.
"""

# %% What a model needs
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.base.streams import seeded
from benchmarks.data import batches, keyed_generator, load, model_input
from benchmarks.records.uncertainty import bootstrap_interval
from kernels.backends import best_for
from kernels.ops import Ops
from models.elbo import Objective, terms
from models.likelihoods import BernoulliSpec
from models.output import (
    Draw,
    Encoding,
    ImageShape,
    LatentShape,
    LikelihoodSpec,
    Model,
    Temperature,
    draw_group,
    sample_group,
)
from models.registry import MODELS, ModelEntry, build


# %% The model: q(z1 | x) q(z2 | x, z1), p(z1) p(z2 | z1), p(x | z1, z2), for 28x28 images
@dataclass(frozen=True)
class TwoGroupsConfig:
    """Width of the maps, latents of the vector, latent channels of the map."""

    width: int = 32
    latent_size: int = 16
    latent_channels: int = 2


class TwoGroups(Model):
    """A vector of latents, and a map of them whose prior the vector decides."""

    def __init__(self, config: TwoGroupsConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        super().__init__(image, likelihood, ops)
        w, z, c = config.width, config.latent_size, config.latent_channels
        self.config = config
        self.up = nn.Sequential(nn.Conv2d(image.channels, w, 4, 2, 1), nn.SiLU(), nn.Conv2d(w, w, 4, 2, 1), nn.SiLU())
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(49 * w, 2 * z))
        self.down = nn.Sequential(nn.Linear(z, 49 * w), nn.SiLU(), nn.Unflatten(1, (w, 7, 7)))
        self.prior, self.second = nn.Conv2d(w, 2 * c, 3, padding=1), nn.Conv2d(2 * w, 2 * c, 3, padding=1)
        self.merge = nn.Conv2d(c, w, 3, padding=1)
        steps = (nn.SiLU(), nn.ConvTranspose2d(w, w, 4, 2, 1), nn.SiLU())
        self.out = nn.Sequential(*steps, nn.ConvTranspose2d(w, likelihood.parameter_channels(image.channels), 4, 2, 1))

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """The vector, then the map."""
        return LatentShape(self.config.latent_size, 1, 1), LatentShape(self.config.latent_channels, 7, 7)

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """Both groups of images x, the second given what was drawn of the first."""
        seen = self.up(x)  # (B, w, 7, 7)
        vector = draw_group(self.ops, draw, 0, self.first(seen)[:, :, None, None].chunk(2, 1), None)
        state = self.down(vector.z.flatten(1))
        raw = self.second(torch.cat([seen, state], 1)).chunk(2, 1)
        detail = draw_group(self.ops, draw, 1, raw, self.prior(state).chunk(2, 1))
        return Encoding(state + self.merge(detail.z), (vector, detail))

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        """The decoder's state of n images from the prior."""
        zero = self.merge.weight.new_zeros(n, self.config.latent_size, 1, 1)
        state = self.down(sample_group(self.ops, draw, 0, (zero, zero), temperature=temperature).flatten(1))
        return state + self.merge(
            sample_group(self.ops, draw, 1, self.prior(state).chunk(2, 1), temperature=temperature)
        )

    def decode_parameters(self, state: Tensor) -> Tensor:
        """Logits of the pixels (B, P, 28, 28)."""
        return self.out(state)


MODELS["two-groups"] = ModelEntry(TwoGroupsConfig, TwoGroups, "a vector of latents, and a map given it")

# %% Digits, in fixed splits; the models see them binarised
data, likelihood = load("mnist-5k"), BernoulliSpec()
test = model_input(data.test, likelihood, keyed_generator(0, "test"))


# %% A training: the engine says what the model's beliefs cost
def trained(name: str, steps: int = 500, batch: int = 32) -> Model:
    """The model after so many steps of Adam; weights, order and noise are keyed, so that the result repeats."""
    with seeded(0, name):
        model = build(name, MODELS[name].config(), data.image, likelihood, best_for("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    objective = Objective(kl_warmup=0.3)
    for step, index in enumerate(islice(batches(len(data.train), batch, seed=0, start_step=0), steps)):
        x = model_input(data.train[index], likelihood, step)
        loss = objective.loss(terms(model(x, Draw(torch.tensor(step))), x), progress=step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# %% Both, at equal images
scores = {}
for name in ("vae", "two-groups"):
    model = trained(name)
    with torch.no_grad():
        costs = terms(model(test, Draw(torch.tensor(0))), test)
    scores[name] = costs.elbo.double().numpy()  # (1000,) nats
    rates = ", ".join(f"{rate:.1f}" for rate in costs.rates.mean(0))
    size = sum(p.numel() for p in model.parameters())
    print(f"{name:10}  {size:7,} parameters  ELBO {scores[name].mean():.1f} nats  rate by group {rates} nats")

# %% The difference, image by image: its interval says how test images vary, not how another training would come out
difference = scores["two-groups"] - scores["vae"]
low, high = bootstrap_interval(difference, seed=0)
print(f"two-groups - vae: {difference.mean():+.1f} nats, 95 % interval {low:.1f} to {high:.1f}")
print(f"{len(test):,} test images, one seed of each")

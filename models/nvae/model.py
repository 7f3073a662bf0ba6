"""NVAE (Vahdat & Kautz 2021) and the residual VAE: one hierarchy of cells, with latents in all groups or one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.ops import RESIDUAL, SOFT_CLAMPED, Ops
from models.layers.convolutions import WeightBank, conv2d
from models.layers.halves import halves
from models.nvae.cells import DecoderCombiner, EncoderCombiner
from models.nvae.config import NVAEConfig
from models.nvae.flows import FlowPair, through_flows
from models.nvae.spectral import NormPenalty
from models.nvae.towers import (
    decoder_tower,
    encoder_tower,
    halvings_per_group,
    posterior_samplers,
    postprocess_tower,
    preprocess_tower,
    prior_samplers,
)
from models.output import (
    Draw,
    Encoding,
    ImageShape,
    LatentGroup,
    LatentShape,
    LikelihoodSpec,
    Model,
    Temperature,
    draw_group,
    fitting_pad,
    sample_group,
)

ALIAS = ".weight_normalized"


class BottomUp(NamedTuple):
    """Coarsest feature, and the features that later groups' posteriors need, fine to coarse, with their combiners."""

    top: Tensor
    remembered: list[tuple[EncoderCombiner, Tensor]]


class NVAE(Model):
    """Deep hierarchical VAE: a bottom-up encoder, and a top-down decoder shared by inference and generation.

    Attribute names and their order are those of the released checkpoints: `state_dict` keys map to themselves.
    """

    hierarchical = True

    def __init__(self, config: NVAEConfig, image: ImageShape, likelihood: LikelihoodSpec, ops: Ops) -> None:
        super().__init__(image, likelihood, ops, fitting_pad(image, 2**config.halvings, config.pad))
        self.config = config
        coarsest = self.latent_shapes[0]
        top = config.channels_at(config.channels_decoder, config.halvings)
        self.prior_ftr0 = nn.Parameter(torch.rand(top, coarsest.height, coarsest.width))
        make = functools.partial(conv2d, normalised=config.weight_norm, network=ops.network)
        self.stem = make(image.channels, config.channels_encoder, 3)
        self.pre_process = preprocess_tower(config, ops)
        self._build_towers()
        self.post_process = postprocess_tower(config, ops)
        outputs = likelihood.parameter_channels(image.channels)
        self.image_conditional = nn.Sequential(
            nn.Identity(), make(config.channels_decoder, outputs, 3, activation="elu")
        )
        of_image = dict.fromkeys([*self.post_process.modules(), *self.image_conditional.modules()])
        self._image_weights = WeightBank(of_image, ops.network)
        self._tower_weights = WeightBank((module for module in self.modules() if module not in of_image), ops.network)
        self.norms = NormPenalty(self, ops.network) if config.norm_penalty else None
        self.register_load_state_dict_pre_hook(_drop_aliases)

    def _build_towers(self) -> None:
        """The parts between pre- and post-processing, in the order of the checkpoints' keys."""
        config, groups = self.config, len(self.latent_shapes)
        self.enc_tower = nn.ModuleList() if config.single_group else encoder_tower(config, self.hierarchical, self.ops)
        coarse = config.channels_at(config.channels_encoder, config.halvings)
        make = functools.partial(conv2d, kernel=1, normalised=config.weight_norm, network=self.ops.network)
        self.enc0 = nn.Sequential(nn.Identity(), make(coarse, coarse, activation="elu"), nn.ELU())
        self.enc_sampler = posterior_samplers(config, groups, self.ops)
        self.dec_sampler = prior_samplers(config, groups, self.ops)
        self.nf_cells = nn.ModuleList(FlowPair(config.latent_channels) for _ in range(groups * config.flows))
        if config.single_group:
            self.stem_decoder = make(config.latent_channels, coarse)
        else:
            self.dec_tower = decoder_tower(config, self.hierarchical, self.ops)

    @property
    def latent_shapes(self) -> tuple[LatentShape, ...]:
        """Shapes of the latent groups, coarse -> fine."""
        height, width = self.image.height + 2 * self.pad, self.image.width + 2 * self.pad
        halvings = halvings_per_group(self.config)
        return tuple(
            LatentShape(self.config.latent_channels, height >> n, width >> n)
            for n in (halvings if self.hierarchical else halvings[:1])
        )

    def encode(self, x: Tensor, draw: Draw) -> Encoding:
        """Bottom-up pass over padded images x, then the top-down pass with z from the posterior."""
        with self._tower_weights.installed():
            return self._infer(self._bottom_up(x), draw)

    def features(self, x: Tensor) -> BottomUp:
        """Bottom-up pass over padded images x."""
        with self._tower_weights.installed():
            return self._bottom_up(x)

    def infer(self, features: BottomUp, draw: Draw) -> Encoding:
        """Top-down pass with z from the posterior."""
        with self._tower_weights.installed():
            return self._infer(features, draw)

    def _infer(self, features: BottomUp, draw: Draw) -> Encoding:
        groups: list[LatentGroup] = []

        def latent(index: int, state: Tensor) -> Tensor:
            if index == 0:
                feature, prior = features.top, None
            else:
                combiner, feature = features.remembered[-index]  # the latest of its resolution first
                feature = combiner(feature, state)  # (B, C, h, w) of the group
                prior = halves(self.dec_sampler[index - 1](state))  # (B, Z, h, w) each
            groups.append(self._draw(index, halves(self.enc_sampler[index](feature)), prior, draw))
            return groups[-1].z  # (B, Z, h, w)

        state = self._top_down(len(features.top), latent)
        return Encoding(state, tuple(groups))

    def decode_parameters(self, state: Tensor) -> Tensor:
        """Likelihood parameters (B, P, H, W) of the padded image."""
        with self._image_weights.installed():
            for cell in self.post_process:
                state = cell(state)
            return self.image_conditional(state)

    def sample_state(self, n: int, draw: Draw, temperature: Temperature = 1.0) -> Tensor:
        """Top-down pass of `n` images with z from the prior, whose scale is multiplied by `temperature`."""
        first = self.latent_shapes[0]

        def generate(index: int, state: Tensor) -> Tensor:
            if index == 0:
                zero = state.new_zeros(()).expand(n, first.channels, first.height, first.width)
                prior = (zero, zero)
            else:
                prior = halves(self.dec_sampler[index - 1](state))
            return sample_group(self.ops, draw, index, prior, SOFT_CLAMPED, temperature)

        with self._tower_weights.installed():
            return self._top_down(n, generate)

    def penalty(self, kl_weight: float | Tensor) -> Tensor | None:
        """Weighted sum of the spectral norms of all convolutions and of the largest scales of all batch norms."""
        if self.norms is None:
            return None
        weights = zip(
            self._tower_weights.convs + self._image_weights.convs,
            self._tower_weights.weights() + self._image_weights.weights(),
            strict=True,
        )
        return self.config.norm_penalty_at(kl_weight) * self.norms(dict(weights))

    def train(self, mode: bool = True) -> NVAE:
        """Switch between training and evaluation; kept effective weights are forgotten."""
        self._tower_weights.clear()
        self._image_weights.clear()
        return super().train(mode)

    def _bottom_up(self, x: Tensor) -> BottomUp:
        state = self.stem((2 * x - 1).contiguous(memory_format=torch.channels_last))  # (B, C, H, W), C at the image
        for cell in self.pre_process:
            state = cell(state)  # the first of each block: (B, 2 C, h / 2, w / 2)
        remembered: list[tuple[EncoderCombiner, Tensor]] = []
        for layer in self.enc_tower:
            if isinstance(layer, EncoderCombiner):
                remembered.append((layer, state))
            else:
                state = layer(state)
        return BottomUp(self.enc0(state), remembered)

    def _top_down(self, n: int, latent: Callable[[int, Tensor], Tensor]) -> Tensor:
        """State after all groups; `latent` gives z of a group from its index and the state before it."""
        state = self.prior_ftr0.expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last)  # (n, C, h, w)
        if self.config.single_group:
            return self.stem_decoder(latent(0, state))
        group = 0
        for layer in self.dec_tower:
            if isinstance(layer, DecoderCombiner):
                state = layer(state, latent(group, state))  # same shape: z is merged by a 1x1 convolution
                group += 1
            else:
                state = layer(state)  # between resolutions (n, C / 2, 2 h, 2 w)
        return state

    def _draw(
        self, index: int, posterior: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor] | None, draw: Draw
    ) -> LatentGroup:
        """The latent group, moved by its flows if there are any."""
        form = RESIDUAL if self.config.residual_posterior and index else SOFT_CLAMPED
        group = draw_group(self.ops, draw, index, posterior, prior, form)
        flows = self.config.flows
        return through_flows(group, self.nf_cells[index * flows : (index + 1) * flows]) if flows else group


class ResidualVAE(NVAE):
    """NVAE's cells and towers with latents in the first (coarsest) group only.

    The later groups keep their cells and lose samplers and combiners, so nothing leads from the bottom-up tower to
    the top-down one but the first group's z.
    """

    hierarchical = False


def _drop_aliases(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Remove the published code's second names of weights from a state that is being loaded."""
    for key in [key for key in state if key.endswith(ALIAS)]:
        del state[key]

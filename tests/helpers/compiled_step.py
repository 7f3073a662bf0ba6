"""Prints how far one compiled training step of a small model is from the eager one; in a process without test hooks."""

import json
import sys

import torch

from benchmarks.training.compiled import compiled_forward
from benchmarks.training.state import forward_terms
from kernels.reference.backend import REFERENCE
from models.likelihoods import BernoulliSpec, GaussianSpec
from models.output import Draw, ImageShape
from models.registry import MODELS, build

TOWER = {
    "channels_encoder": 2,
    "channels_decoder": 2,
    "channel_cap": 4,
    "preprocess_blocks": 1,
    "groups_fine_to_coarse": (1, 1),
}
SMALL = {
    "ae": {"hidden": (8,), "latent_size": 3},
    "vae": {"channels": 4, "halvings": 1, "latent_size": 3},
    "residual-vae": TOWER,
    "nvae": {**TOWER, "latent_channels": 2},
    "vdvae": {"encoder_blocks": "32d8,4x1", "decoder_blocks": "4x1,32m4", "width": 8, "latent_channels": 2},
}


def gradients(model, forward, x, draw):
    """Loss and all gradients of one step."""
    model.zero_grad()
    found = forward(model, x, draw, False)
    loss = found.distortion.mean() + found.rates.sum(1).mean()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def main(name):
    """Compare model `name`."""
    torch.manual_seed(0)
    spec = GaussianSpec() if name == "ae" else BernoulliSpec()
    model = build(name, MODELS[name].config(**SMALL[name]), ImageShape(1, 28, 28), spec, REFERENCE).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = (torch.rand(4, 1, 28, 28) > 0.8).float()
    compiled, note = compiled_forward(model, x, Draw(torch.tensor(1)), bfloat16=False)
    kept = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loss, eager = gradients(model, forward_terms, x, Draw(torch.tensor(2)))
    other, fast = gradients(model, compiled, x, Draw(torch.tensor(2)))
    scale = max(float(g.abs().max()) for g in eager)
    gap = max(float((a - b).abs().max()) for a, b in zip(eager, fast, strict=True))
    print(json.dumps({"note": note, "kept": kept, "loss": float((loss - other) / loss), "gradient": gap / scale}))


if __name__ == "__main__":
    main(sys.argv[1])

"""What each latent group of an NVAE decides: pictures are taken apart into latents and put together from fewer of them.

    python examples/latents.py [OUT.png]        (in the folder of the repository; seconds, no data needed)

The weights are those of NVAE on Fashion-MNIST that come with the repository; the pictures are its own samples.
"""

# %% A trained model
import sys
from pathlib import Path

import torch

from benchmarks.data import to_uint8, to_unit
from benchmarks.evaluation.picture_files import Grid, written
from benchmarks.storage.weights import load_model
from models.latents import decode, encode
from models.output import Draw

RESULTS = Path(__file__).resolve().parent.parent / "results"
model = load_model(RESULTS / "fashion-mnist" / "nvae", torch.device("cpu")).model
torch.set_grad_enabled(False)
print("latent groups (Z, h, w):", [(s.channels, s.height, s.width) for s in model.latent_shapes])

# %% Eight pictures from the prior, a little cooler than it is; 8-bit levels, as images of a data set would be
pictures = to_unit(to_uint8(model.sample(8, Draw(torch.tensor(3)), temperature=0.8).mean()))  # (8, 1, 28, 28)

# %% Their latents: z, mean and scale of the posterior of every group, coarse -> fine
latents = encode(model, pictures, Draw(torch.tensor(0), at_mean=True))
for index, group in enumerate(latents, 1):
    print(f"group {index}: z {tuple(group.z.shape)}, mean scale {group.scale.mean():.3f}")

# %% Back again: all groups, then the first K of them with the others drawn anew
rows = [pictures, decode(model, latents, Draw(torch.tensor(0))).mean()]
error = (rows[1] - pictures).square().mean()
print(f"all groups: MSE {error:.4f} (0-1)")
for keep in reversed(range(len(latents))):
    rows.append(decode(model, latents, Draw(torch.tensor(1)), keep=keep).mean())
    print(f"first {keep} groups: MSE {(rows[-1] - pictures).square().mean():.4f}")

# %% One column a picture; from the top: the picture, all groups, four, three, two, one and none of its own
out = Path(sys.argv[1] if len(sys.argv) > 1 else "latents.png")
written([to_uint8(torch.cat(rows))], [Grid(out, n=len(pictures) * len(rows), columns=len(pictures))])
print("written:", out)

"""Settings of a training process, tried in one of its own."""

import subprocess
import sys

SUBNORMALS = """
import torch
from benchmarks.machine.process import flush_subnormals
from kernels.backends import best_for

flush_subnormals()
torch.set_num_threads(2)
small = torch.full((64, 4096), 1e-30)
print(int((small * 1e-10).count_nonzero()))  # torch's own threads
conv = torch.nn.functional.conv2d(small.view(1, 64, 64, 64), torch.full((64, 64, 1, 1), 1e-10))
print(int(conv.count_nonzero()))
noise = small[:, :, None, None]
z = best_for("cpu").gaussian_sample(noise * 0, noise * 0, seed=torch.tensor(0), group=0, temperature=1e-10, noise=noise)
print(int(z.count_nonzero()))  # the C kernels'
"""


def test_subnormal_numbers_are_zero_in_every_thread():
    done = subprocess.run([sys.executable, "-c", SUBNORMALS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "0"]
    without = SUBNORMALS.replace("\nflush_subnormals()", "")
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=True)
    assert all(int(count) > 0 for count in done.stdout.split())

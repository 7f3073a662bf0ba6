"""Files in the layout of the downsampled ImageNet release, with images that are none of it."""

import numpy as np


def write_imagenet(folder, side, train=10_040, save=np.savez):
    """Ten batches of training images and the validation images: (N, 3 side side), channels first, labels from 1.

    An image has one value in its red channel, by which its label goes, and none in the others.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    sizes = np.full(10, train // 10)
    sizes[-1] += train - sizes.sum()
    for name, n in [*((f"train_data_batch_{i + 1}", n) for i, n in enumerate(sizes)), ("val_data", 30)]:
        data = np.zeros((n, 3 * side * side), np.uint8)
        data[:, : side * side] = rng.integers(0, 256, (n, 1), dtype=np.uint8)
        save(folder / f"{name}.npz", data=data, labels=data[:, 0] % 10 + 1, mean=np.zeros(3 * side * side))

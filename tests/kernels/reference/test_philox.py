"""The keyed noise: its integers are Philox 4x32-10, its normals are normal, and an image draws by its key alone."""

import math

import pytest
import torch
from scipy import stats

from kernels.reference.philox import normals, philox, round_keys, words

KNOWN_ANSWERS = [
    # (counter, key, words): Random123's kat_vectors for philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
FLOAT32_NORMAL_ERROR = 2e-6  # elementary functions in float32 at magnitudes up to 6.8
BATTERY_DRAWS = 2**19
REJECT_BELOW = 1e-4  # p-value; the seeds are fixed, so a pass stays a pass


def seed_of(low: int, high: int) -> torch.Tensor:
    value = low | high << 32
    return torch.tensor(value - 2**64 if value >= 2**63 else value)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_words_are_the_published_ones(counter, key, expected):
    drawn = philox(tuple(torch.tensor(c) for c in counter), round_keys(seed_of(*key)))
    assert tuple(int(word) for word in drawn) == expected


def test_counter_is_quad_sample_group():
    seed = torch.tensor(-5)
    keys = round_keys(seed)
    drawn = words(keys, 3, range(7, 9), 2)
    single = philox(tuple(torch.tensor(c) for c in (1, 8, 3, 0)), keys)
    assert [int(w[1, 1]) for w in drawn] == [int(w) for w in single]


def test_box_muller_pairs_words_in_order():
    seed = torch.tensor(11)
    w0, w1, w2, w3 = (int(w) for w in words(round_keys(seed), 0, range(1), 1))
    radius = [math.sqrt(-2 * math.log((w + 0.5) / 2**32)) for w in (w0, w2)]
    angle = [2 * math.pi * w / 2**32 for w in (w1, w3)]
    expected = [r * f(a) for r, a in zip(radius, angle, strict=True) for f in (math.cos, math.sin)]
    drawn = normals(seed, 0, (1, 4), dtype=torch.float64)
    assert drawn[0].tolist() == pytest.approx(expected, abs=FLOAT32_NORMAL_ERROR)


@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 7), (4, 5, 3, 3), (0, 4), (2, 0)])
def test_shape_and_precision(shape):
    seed = torch.tensor(2**40 + 1)
    single, double = normals(seed, 1, shape), normals(seed, 1, shape, dtype=torch.float64)
    assert single.shape == shape
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=0, atol=FLOAT32_NORMAL_ERROR)


def test_an_image_draws_the_same_noise_in_any_batch():
    seed = torch.tensor(99)
    whole = normals(seed, 2, (6, 5, 4, 4))
    assert torch.equal(normals(seed, 2, (2, 5, 4, 4), first_sample=3), whole[3:5])
    assert torch.equal(normals(seed, 2, (6, 80)).view(6, 5, 4, 4), whole)


def test_chunks_do_not_change_the_draw(monkeypatch):
    seed = torch.tensor(5)
    whole = normals(seed, 0, (7, 33))
    monkeypatch.setattr("kernels.reference.philox.CHUNK", 16)
    assert torch.equal(normals(seed, 0, (7, 33)), whole)


def test_distinct_keys_draw_distinct_noise():
    draws = [
        normals(torch.tensor(seed), group, (1, 64), first_sample=sample)
        for seed in (0, 1, 2**32, -1)
        for group in (0, 1)
        for sample in (0, 1)
    ]
    stacked = torch.cat(draws)
    assert len(torch.unique(stacked)) > 0.99 * stacked.numel()
    correlation = torch.corrcoef(stacked) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(64)


def battery(draws: torch.Tensor) -> dict[str, float]:
    """p-values of independent views of draws (n,) that should be standard normal."""
    n, values = draws.numel(), draws.double()
    quads = values.view(-1, 4)
    z_scores = {
        "mean": values.mean() * math.sqrt(n),
        "variance": (values.square().mean() - 1) * math.sqrt(n / 2),
        "skew": values.pow(3).mean() * math.sqrt(n / 15),
        "kurtosis": (values.pow(4).mean() - 3) * math.sqrt(n / 96),
        "neighbours": (values[1:] * values[:-1]).mean() * math.sqrt(n),
        "tail": (float((values.abs() > 4).sum()) - n * 6.334e-5) / math.sqrt(n * 6.334e-5),
    }
    for i in range(4):
        for j in range(i):
            squares = (quads[:, i].square() - 1) * (quads[:, j].square() - 1) / 2
            z_scores[f"lanes {i} {j}"] = (quads[:, i] * quads[:, j]).mean() * math.sqrt(n / 4)
            z_scores[f"squares {i} {j}"] = squares.mean() * math.sqrt(n / 4)
    p_values = {name: float(2 * stats.norm.sf(abs(float(z)))) for name, z in z_scores.items()}
    uniform = stats.norm.cdf(values.numpy())
    p_values["kolmogorov-smirnov"] = float(stats.kstest(uniform, "uniform").pvalue)
    counts = torch.histc(torch.from_numpy(uniform), 1024, 0, 1)
    p_values["chi-square"] = float(stats.chisquare(counts.numpy()).pvalue)
    return p_values


@pytest.mark.parametrize("seed", [0, 2**45 + 17])
def test_normals_are_normal(seed):
    p_values = battery(normals(torch.tensor(seed), 0, (64, BATTERY_DRAWS // 64)).flatten())
    assert min(p_values.values()) > REJECT_BELOW, p_values


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 12345, -(2**40)])
@pytest.mark.parametrize("group", [0, 7])
def test_normals_are_normal_at_length(seed, group):
    p_values = battery(normals(torch.tensor(seed), group, (64, 2**21 // 64)).flatten())
    assert min(p_values.values()) > REJECT_BELOW, p_values


def test_battery_rejects_a_cut_tail():
    draws = normals(torch.tensor(0), 0, (64, BATTERY_DRAWS // 64)).flatten().clamp(-3.5, 3.5)
    assert min(battery(draws).values()) < REJECT_BELOW

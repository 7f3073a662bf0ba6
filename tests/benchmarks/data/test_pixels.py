from itertools import islice

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.base.streams import generator_seed, seeded
from benchmarks.data import batches, binarise, keyed_generator, to_uint8, to_unit

LEVELS = torch.arange(256, dtype=torch.uint8)


def test_pixels_survive_the_round_trip():
    assert torch.equal(to_uint8(to_unit(LEVELS)), LEVELS)


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_b_bits_are_the_floor_over_the_highest_level(bits):
    unit = to_unit(LEVELS, bits)
    assert unit.dtype == torch.float32
    assert unit.unique().numel() == 2**bits
    expected = torch.div(LEVELS.double(), 2 ** (8 - bits), rounding_mode="floor") / (2**bits - 1)
    torch.testing.assert_close(unit, expected.float())


def test_out_of_range_values_are_clamped_and_halves_round_to_even():
    values = torch.tensor([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 1.0, 7.0], dtype=torch.float64)
    assert to_uint8(values).tolist() == [0, 0, 0, 2, 255, 255]


@pytest.mark.parametrize("images", [torch.tensor([float("nan")]), torch.tensor([1])])
def test_to_uint8_refuses_what_it_cannot_round(images):
    with pytest.raises(ValueError, match="expected"):
        to_uint8(images)


def test_to_unit_refuses_floats_and_odd_bits():
    with pytest.raises(ValueError, match="uint8"):
        to_unit(torch.zeros(3))
    with pytest.raises(ValueError, match="bits"):
        to_unit(LEVELS, bits=9)


def test_binarise_follows_its_stream_and_the_grey_value():
    grey = torch.full((200, 100), 0.3)
    draws = [binarise(grey, keyed_generator(seed, "binarise")) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}
    standard_error = (0.3 * 0.7 / grey.numel()) ** 0.5
    assert abs(draws[0].mean().item() - 0.3) < 4 * standard_error


def test_binarise_draws_as_torch_does():
    """The faster form gives the values of `torch.bernoulli`, so that seeds keep their meaning."""
    grey = to_unit(LEVELS).repeat(100)
    expected = torch.bernoulli(grey, generator=keyed_generator(3, "binarise"))
    assert torch.equal(binarise(grey, keyed_generator(3, "binarise")), expected)
    assert torch.equal(binarise(grey, generator_seed(3, "binarise")), expected)


def test_an_epoch_is_a_permutation_without_its_remainder():
    epoch = torch.cat(list(islice(batches(10, 3, seed=0), 3)))
    assert epoch.unique().numel() == 9
    assert set(epoch.tolist()) < set(range(10))


@pytest.mark.parametrize("start", [0, 2, 3, 4, 31])
def test_a_resumed_order_equals_the_uninterrupted_one(start):
    whole = list(islice(batches(10, 3, seed=5), 40))
    resumed = list(islice(batches(10, 3, seed=5, start_step=start), 40 - start))
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_seeds_and_epochs_give_different_orders():
    first, second = islice(batches(1000, 1000, seed=0), 2)
    other = next(batches(1000, 1000, seed=1))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_streams_are_keyed_by_seed_purpose_and_step():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({keyed_generator(*key).initial_seed() for key in keys}) == len(keys)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_an_impossible_batch_size_is_an_error_at_once(batch_size):
    with pytest.raises(UserError, match="batch size"):
        batches(10, batch_size, seed=0)


def test_every_seed_purpose_and_step_has_a_stream_of_its_own():
    keys = [(seed, purpose, step) for seed in range(8) for purpose in ("batch", "order") for step in range(4)]
    draws = {tuple(torch.rand(4, generator=keyed_generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_every_seed_starts_from_weights_of_its_own():
    starts = set()
    for seed in range(8):
        with seeded(seed, "initialisation"):
            starts.add(tuple(torch.randn(4).tolist()))
    assert len(starts) == 8

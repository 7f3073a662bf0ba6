"""Training: reproducible, resumable bit for bit, and unharmed by a non-finite step."""

import copy
import dataclasses
import itertools

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.data import DataSet
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training import loop
from benchmarks.training.guard import StepGuard, gradient_norm
from benchmarks.training.loop import planned_steps, seconds_per_step, train, training_batch, validation_steps
from benchmarks.training.state import TrainingState, build_optimizer, restore
from benchmarks.training.step import learning_rate, train_step, update_average
from models.output import Draw, ImageShape

CPU = torch.device("cpu")
STEPS = 6
TINY = [
    "training.images=48",
    "training.batch_size=8",
    "training.validations=2",
    "evaluation.batch_size=8",
    "models.ae.channels=4",
    "models.vae.channels=4",
    "models.nvae.channels_encoder=4",
    "models.nvae.channels_decoder=4",
    "models.nvae.channel_cap=8",
    "models.residual-vae.channels_encoder=4",
    "models.residual-vae.channels_decoder=4",
    "models.residual-vae.channel_cap=8",
]


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (40, 10, 12)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


def make_trial(row="vae", *assignments):
    name, table = read_suite("quick")
    table["models"]["vdvae"] = {"preset": "vdvae-tiny"}
    for assignment in [*TINY, *assignments]:
        set_path(table, assignment)
    return build_suite(name, table, [row]).trials[0]


def run(trial, data, folder, stop_at=None):
    model = build_model(trial, data.image, CPU)
    steps = []
    stop = lambda: stop_at is not None and len(steps) >= stop_at  # noqa: E731
    result = train(model, trial, data, folder, lambda done, total, phase: steps.append(done), stop)
    return model, result


def assert_same(one, two):
    for (key, a), b in zip(one[0].state_dict().items(), two[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    for a, b in zip(one[1].curves, two[1].curves, strict=True):
        assert a.values == b.values


@pytest.mark.parametrize("row", ["ae", "vae", "residual-vae", "nvae", "vdvae"])
def test_two_runs_are_identical(row, data, tmp_path):
    trial = make_trial(row)
    assert_same(run(trial, data, tmp_path / "a"), run(trial, data, tmp_path / "b"))


@pytest.mark.parametrize(
    ("row", "optimizer"),
    [("vae", "adamw"), ("vae", "adam"), ("vae", "adamax"), ("nvae", "adamax"), ("vdvae", "adamw")],
)
def test_a_run_killed_half_way_continues_bit_for_bit(row, optimizer, data, tmp_path):
    trial = make_trial(row, f"training.optimizer='{optimizer}'", "training.ema=0.9", "training.ema_batches=2")
    whole = run(trial, data, tmp_path / "whole")
    _, partial = run(trial, data, tmp_path / "parts", stop_at=3)
    assert not partial.finished
    assert partial.steps == 3
    assert_same(whole, run(trial, data, tmp_path / "parts"))


def test_another_seed_trains_another_model(data, tmp_path):
    trial = make_trial()
    one, _ = run(trial, data, tmp_path / "a")
    two, _ = run(dataclasses.replace(trial, seed=1), data, tmp_path / "b")
    assert not torch.equal(one.decoder.head.weight, two.decoder.head.weight)


def test_training_lowers_the_loss(data, tmp_path):
    trial = make_trial("vae", "training.images=320", "training.learning_rate=3e-3")
    _, result = run(trial, data, tmp_path)
    loss = result.curves[0].values
    assert sum(loss[-5:]) < sum(loss[:5])


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "adamax"])
def test_a_non_finite_step_leaves_no_trace(optimizer, data):
    trial = make_trial("vae", f"training.optimizer='{optimizer}'", "training.clip_norm=0")
    model = build_model(trial, data.image, CPU).train()
    state = TrainingState(model, build_optimizer(trial.training, model, CPU), torch.full((4,), torch.nan), 4)
    guard = StepGuard(model, state.optimizer)
    x = training_batch(trial, data.train, torch.arange(8), 0)
    train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    moments = {
        (i, key): value.clone() for i, s in enumerate(state.optimizer.state.values()) for key, value in s.items()
    }
    handle = model.decoder.head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
    handle.remove()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for i, values in enumerate(state.optimizer.state.values()):
        for key, value in values.items():
            assert torch.equal(value, moments[i, key]), key
    assert state.skipped == 1
    train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
    assert state.skipped == 1
    assert not torch.equal(model.decoder.head.weight, before["decoder.head.weight"])


def test_the_gradient_s_norm_is_that_of_all_values():
    whole = torch.randn(500, generator=torch.Generator().manual_seed(0))
    flat, map = whole[:100], whole[100:499].view(1, 19, 3, 7).contiguous(memory_format=torch.channels_last)
    norm = gradient_norm([flat, map, whole[499]])
    torch.testing.assert_close(norm, whole.double().norm(), rtol=1e-6, atol=0)
    assert gradient_norm([]) == 0


def one_step_state(trial, data):
    """A model before its first step, and the images of that step."""
    model = build_model(trial, data.image, CPU).train()
    state = TrainingState(model, build_optimizer(trial.training, model, CPU), torch.full((4,), torch.nan), 4)
    return state, training_batch(trial, data.train, torch.arange(8), 0)


@pytest.mark.parametrize(("threshold", "taken"), [(0.0, True), (1e9, True), (1e-3, False)])
def test_a_step_of_too_large_a_gradient_is_skipped(threshold, taken, data):
    """Parameters, moments and average stay; the learning rate moves on; it is counted."""
    settings = ("training.ema=0.5", f"training.skip_threshold={threshold}", "training.warmup_steps=2")
    trial = make_trial("vdvae", *settings)
    state, x = one_step_state(trial, data)
    guard, before = StepGuard(state.model, state.optimizer), copy.deepcopy(state.model.state_dict())
    for _ in range(2):  # the first has a learning rate of 0
        train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
    same = all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert (same, state.skipped) == (not taken, 0 if taken else 2)
    assert bool(state.optimizer.state) == bool(state.average) == taken
    assert state.optimizer.param_groups[0]["lr"] == trial.training.learning_rate / 2
    assert state.over_threshold == state.locked == (0 if taken else 2)


@pytest.mark.parametrize("optimizer", ["adamw", "adamax"])
def test_a_non_finite_first_step_leaves_no_trace(optimizer, data):
    trial = make_trial("vae", f"training.optimizer='{optimizer}'")
    results = []
    for broken in (True, False):
        model = build_model(trial, data.image, CPU).train()
        state = TrainingState(model, build_optimizer(trial.training, model, CPU), torch.full((4,), torch.nan), 4)
        guard = StepGuard(model, state.optimizer)
        x = training_batch(trial, data.train, torch.arange(8), 0)
        if broken:
            handle = model.decoder.head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
            train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
            handle.remove()
        state.step = 1
        train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
        results.append(model.state_dict())
    for key in results[0]:
        assert torch.equal(results[0][key], results[1][key]), key


def test_averaged_weights_follow_their_formula(data):
    """After each step t the average moves by 1 - min(decay, (1 + t) / (10 + t)); it starts at the first weights."""
    model = build_model(make_trial(), data.image, CPU)
    state = TrainingState(model, build_optimizer(make_trial().training, model, CPU), torch.zeros(100), 100)
    weight, expected = model.decoder.head.weight, None
    for step in (1, 2, 50):
        state.step = step
        with torch.no_grad():
            weight.add_(step)
        update_average(state, 0.5)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = weight.clone() if expected is None else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(state.average["decoder.head.weight"], expected)


def test_averages_that_are_not_warmed_start_at_the_initial_weights(data):
    trial = make_trial("vae", "training.ema=0.75", "training.ema_warmup=false", "training.warmup=0")
    state, x = one_step_state(trial, data)
    weight, guard = state.model.decoder.head.weight, StepGuard(state.model, state.optimizer)
    expected = weight.detach().clone()
    for _ in range(2):
        train_step(state, guard, trial, x, Draw(seed_tensor(0, "t", CPU)))
        expected = 0.75 * expected + 0.25 * weight.detach()
        torch.testing.assert_close(state.average["decoder.head.weight"], expected)


def test_learning_rate_warms_up_over_steps_and_stays():
    """From 0 at the first step, as VDVAE; `final_rate` 1 keeps it there."""
    config = make_trial("vae", "training.warmup_steps=4", "training.final_rate=1.0").training
    rates = [learning_rate(config, step, 20) / config.learning_rate for step in range(20)]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, *[1.0] * 16])


@pytest.mark.parametrize("betas", ["[0.9]", "[0.9, 1.0]", "[0.9, 0.9, 0.9]"])
def test_impossible_betas_are_one_line(betas):
    with pytest.raises(UserError, match="betas: expected two values in"):
        make_trial("vae", f"training.betas={betas}")


def test_learning_rate_warms_up_and_ends_at_its_final_fraction():
    config = make_trial("vae", "training.warmup=0.1", "training.final_rate=0.05").training
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == pytest.approx(config.learning_rate)
    assert rates[-1] == pytest.approx(0.05 * config.learning_rate, rel=0.02)


def test_length_in_images_and_epochs():
    assert planned_steps(make_trial("vae").training, 40) == STEPS
    assert planned_steps(make_trial("vae", "training.epochs=2.0").training, 40) == 10


def test_validation_is_spread_evenly_and_ends_with_the_training():
    config = make_trial("vae", "training.validations=4").training
    assert sorted(validation_steps(config, 100)) == [25, 50, 75, 100]


def test_a_budget_in_seconds_fixes_the_number_of_steps(data, tmp_path):
    trial = make_trial("vae", "training.seconds=0.5")
    _, result = run(trial, data, tmp_path)
    assert result.finished
    assert result.steps >= 1
    _, same = run(trial, data, tmp_path)
    assert same.steps == result.steps


def test_a_budget_of_processor_time_is_counted_in_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.time, "process_time", itertools.count().__next__)  # one second a look
    _, result = run(make_trial("vae", "training.cpu_seconds=7"), data, tmp_path)
    assert result.steps == 7
    assert result.cpu_seconds == 7


def test_a_budget_is_met_where_steps_cost_other_than_measured(data, tmp_path, monkeypatch):
    """Every look at the clock adds a second at first and three from the 100th on: measuring makes 80 of them."""
    looks = itertools.count()
    seconds = itertools.accumulate(1 if look < 100 else 3 for look in looks)
    monkeypatch.setattr(loop.time, "process_time", seconds.__next__)
    _, result = run(make_trial("vae", "training.cpu_seconds=70"), data, tmp_path)
    assert 68 <= result.cpu_seconds <= 72
    assert result.steps < 40  # ten steps of one second, the others of three
    assert result.finished
    ends = [step for curve in result.curves if curve.name == "validation elbo" for step in curve.images]
    assert ends[-1] == result.images


def test_processor_time_survives_an_interruption_and_is_unknown_after_an_older_state(data, tmp_path):
    trial = make_trial("vae")
    stopped = run(trial, data, tmp_path, stop_at=2)[1]
    state = restore(build_model(trial, data.image, CPU), trial, tmp_path)
    assert state.cpu_seconds == stopped.cpu_seconds > 0
    assert run(trial, data, tmp_path)[1].cpu_seconds > stopped.cpu_seconds


def test_measuring_speed_changes_nothing(data):
    trial = make_trial()
    model = build_model(trial, data.image, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert seconds_per_step(model, trial, data) > 0
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_flips_are_keyed(data):
    trial = make_trial("ae", "training.flip=true")
    plain = make_trial("ae")
    indices = torch.arange(8)
    flipped = training_batch(trial, data.train, indices, 3)
    assert torch.equal(flipped, training_batch(trial, data.train, indices, 3))
    straight = training_batch(plain, data.train, indices, 3)
    which = [not torch.equal(a, b) for a, b in zip(flipped, straight, strict=True)]
    assert 0 < sum(which) < 8
    assert all(torch.equal(a.flip(-1) if w else a, b) for a, b, w in zip(flipped, straight, which, strict=True))

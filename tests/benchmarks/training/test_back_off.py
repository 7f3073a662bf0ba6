"""What a training does when its steps fail: an older checkpoint, a good state at half the rate, smaller passes."""

import dataclasses
import re

import pytest
import torch
import torch.distributed as dist

from benchmarks.base.errors import GivenUpError, StarvedError
from benchmarks.data import DataSet
from benchmarks.storage import tensors
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training import step as training_step
from benchmarks.training.loop import train
from benchmarks.training.ranks import Ranks
from benchmarks.training.state import restore
from kernels.cell_form import CellForm
from models.output import ImageShape

CPU = torch.device("cpu")
STEPS = 12
TINY = ("models.vae.channels=2", "training.images=96", "training.batch_size=8", "training.validations=2")


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (40, 10, 12)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """What a disk takes to write for good is of no interest here."""
    monkeypatch.setattr("benchmarks.base.files.os.fsync", lambda descriptor: None)


def make_trial(*assignments, row="vae"):
    name, table = read_suite("quick")
    for assignment in [*TINY, *assignments]:
        set_path(table, assignment)
    return build_suite(name, table, [row]).trials[0]


def run(trial, data, folder, model=None, stop_at=None):
    model, said, done = model or build_model(trial, data.image, CPU), [], []
    stop = lambda: stop_at is not None and len(done) >= stop_at  # noqa: E731
    result = train(model, trial, data, folder, lambda step, steps, phase: done.append(step), stop, said.append)
    return model, result, said


def weights(model):
    return tensors.digest(model.state_dict())


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(data, tmp_path, capsys):
    trial = make_trial("training.checkpoint_seconds=1e-9")
    whole, _, _ = run(trial, data, tmp_path / "whole")
    run(trial, data, tmp_path / "cut", stop_at=7)
    run(trial, data, tmp_path / "cut", stop_at=1)
    flip_a_bit(tmp_path / "cut" / tensors.STATE)
    state = restore(build_model(trial, data.image, CPU), trial, tmp_path / "cut")
    assert 0 < state.step < STEPS
    (line,) = capsys.readouterr().err.splitlines()
    assert "training.safetensors" in line
    assert "damaged on disk" in line
    assert weights(run(trial, data, tmp_path / "cut")[0]) == weights(whole)


def test_with_both_checkpoints_damaged_the_training_starts_again(data, tmp_path):
    trial = make_trial("training.checkpoint_seconds=1e-9")
    whole, _, _ = run(trial, data, tmp_path / "whole")
    run(trial, data, tmp_path / "cut", stop_at=7)
    for name in (tensors.STATE, tensors.STATE_BEFORE):
        (tmp_path / "cut" / name).write_bytes(b"half a fi")
    assert weights(run(trial, data, tmp_path / "cut")[0]) == weights(whole)


def test_a_validation_that_was_interrupted_is_made_up_for(data, tmp_path):
    trial = make_trial("evaluation.batch_size=2")
    whole, expected, _ = run(trial, data, tmp_path / "whole")
    model, calls = build_model(trial, data.image, CPU), []

    def stop():
        calls.append(model.training)
        return calls.count(False) > 2  # from the middle of the first validation on

    first = train(model, trial, data, tmp_path / "cut", lambda *event: None, stop)
    assert (first.steps, first.finished, first.curves[1].values) == (STEPS // 2, False, [])
    model, result, _ = run(trial, data, tmp_path / "cut")
    assert result.curves[1] == expected.curves[1]
    assert weights(model) == weights(whole)


def broken(first, last):
    """A hook whose layer gives infinities in its calls `first` to `last`, counted from 1."""
    calls = []

    def hook(module, inputs, output):
        if module.training:
            calls.append(1)
            return output / 0 if first <= len(calls) <= last else output
        return output

    return hook


BACK_OFF = ("training.hopeless_after=3", "training.warmup=0", "training.final_rate=1")


def test_after_steps_that_are_not_finite_the_last_good_state_goes_on_at_half_the_rate(data, tmp_path):
    """Calls 8 to 11 fail: three steps, and the replay that names the layer (a call more)."""
    trial = make_trial(*BACK_OFF)
    model = build_model(trial, data.image, CPU)
    model.decoder.head.register_forward_hook(broken(8, 11))
    _, result, said = run(trial, data, tmp_path, model)
    assert (result.finished, result.steps, result.back_offs, result.skipped) == (True, STEPS, 1, 0)
    assert re.search(r"the last 3 steps were not finite .* at step 10; back to step 7 at 0.5 of the rate", said[-1])
    half = dataclasses.replace(
        trial, training=dataclasses.replace(trial.training, learning_rate=trial.training.learning_rate / 2)
    )
    run(trial, data, tmp_path / "by hand", stop_at=7)
    assert weights(run(half, data, tmp_path / "by hand")[0]) == weights(model)


def test_a_kill_after_a_return_changes_nothing(data, tmp_path):
    trial = make_trial(*BACK_OFF)
    found = []
    for name, stop_at in (("whole", None), ("cut", 9)):  # 7 good, 3 bad, and so on
        model = build_model(trial, data.image, CPU)
        model.decoder.head.register_forward_hook(broken(8, 11))
        if stop_at:
            run(trial, data, tmp_path / name, model, stop_at=11)
        found.append(run(trial, data, tmp_path / name, model))
    (whole, first, _), (cut, second, _) = found
    assert first.back_offs == second.back_offs == 1
    assert weights(whole) == weights(cut)


def test_a_parameter_out_of_range_is_caught_at_the_last_step_too(data, tmp_path, monkeypatch):
    """Its gradients are finite, and so is the loss: only the step overflows."""
    monkeypatch.setattr(training_step, "learning_rate", lambda *_: 1e40)
    trial = make_trial("training.images=8", "training.optimizer=adam")
    _, result, said = run(trial, data, tmp_path)
    assert not result.finished
    assert result.hopeless.startswith("given up at step 1 of 1: a step took parameters out of range")
    assert "after 2 returns to a good state at half the rate" in result.hopeless
    assert [line.rsplit(" at ", 1)[1] for line in said if "back to" in line] == ["0.5 of the rate", "0.25 of the rate"]


def test_steps_that_are_all_skipped_are_said_and_end(data, tmp_path):
    trial = make_trial("training.skip_threshold=1e-3", "training.hopeless_after=4")
    model, result, said = run(trial, data, tmp_path)
    assert [result.steps, result.over_threshold, result.back_offs] == [4, 4, 2]
    assert "the last 4 steps were skipped, their gradient's norm at 0.001 or above" in said[0]
    assert result.hopeless.endswith("or raise training.skip_threshold")
    assert weights(model) == weights(build_model(trial, data.image, CPU))


def test_a_threshold_that_is_never_reached_changes_nothing(data, tmp_path):
    plain, _, _ = run(make_trial(), data, tmp_path / "plain")
    model, result, _ = run(make_trial("training.skip_threshold=1e30"), data, tmp_path / "high")
    assert weights(model) == weights(plain)
    assert result.over_threshold == 0


def too_large(most, error):
    """A hook whose layer takes `most` images at a time."""

    def hook(module, inputs):
        if module.training and len(inputs[0]) > most:
            raise error

    return hook


ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory: you tried to allocate"),
    RuntimeError("could not create a primitive"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_where_memory_runs_out_a_batch_takes_more_passes_with_the_same_noise(error, data, tmp_path):
    trial = make_trial("training.images=8", "models.vae.hidden=[16]")
    losses = []
    for most in (8, 2):
        model = build_model(trial, data.image, CPU)
        model.decoder.register_forward_pre_hook(too_large(most, error))
        _, result, said = run(trial, data, tmp_path / str(most), model)
        losses.append(result.curves[0].values[0])
    assert result.passes == 4
    assert said == ["out of memory at step 1: a batch takes 4 passes from here on"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)  # without batch norm: the same sum in another order


def keeps_all(module, inputs):
    """A hook whose model finds no memory as long as its cells keep what the backward pass needs."""
    forms = [getattr(part, "form", None) for part in module.modules()]
    if module.training and not all(form.recompute for form in forms if isinstance(form, CellForm)):
        raise ERRORS[1]


def test_where_one_image_is_too_much_cells_are_computed_again(data, tmp_path):
    trial = make_trial("training.images=24", row="nvae")
    model = build_model(trial, data.image, CPU)
    model.register_forward_pre_hook(keeps_all)
    _, first, said = run(trial, data, tmp_path / "short", model, stop_at=1)
    assert (first.passes, first.recompute) == (8, True)
    (line,) = said
    assert line.endswith("a batch takes 8 passes from here on, whose cells are computed again in the backward pass")
    model = build_model(trial, data.image, CPU)
    model.register_forward_pre_hook(keeps_all)
    _, second, said = run(trial, data, tmp_path / "short", model)  # a training that goes on remembers
    assert (second.finished, second.passes, second.recompute, said) == (True, 8, True, [])


def test_an_image_that_is_too_much_and_other_errors_end_a_training(data, tmp_path):
    trial = make_trial("training.images=8")
    for error, said in ((ERRORS[0], "ran out of memory in this process"), (RuntimeError("a bug"), "a bug")):
        model = build_model(trial, data.image, CPU)
        model.decoder.head.register_forward_pre_hook(too_large(0, error))
        with pytest.raises(Exception, match=said):
            run(trial, data, tmp_path / said[:3], model)


def spoilt_heap(most, recomputed=True):
    """A hook whose process finds no memory any more once a pass of more than `most` images has failed, and its calls.

    Without `recomputed`, cells must compute again what they would keep.
    """
    calls = []

    def hook(module, inputs):
        forms = [form for part in module.modules() if isinstance(form := getattr(part, "form", None), CellForm)]
        if not module.training:
            return
        calls.append(len(inputs[0]))
        if max(calls) > most or not (recomputed or all(form.recompute for form in forms)):
            calls.append(module.image.height**2)  # larger than any
            raise ERRORS[3]

    return hook, calls


def in_fresh_processes(trial, data, folder, **heap):
    """A training that is started again until it does not ask for that: the result or error, and what was said."""
    told = []
    for _ in range(10):
        model, said = build_model(trial, data.image, CPU), []
        hook, calls = spoilt_heap(**heap)
        model.register_forward_pre_hook(hook)
        try:
            result = train(model, trial, data, folder, lambda *event: None, lambda: False, said.append)
        except GivenUpError as error:
            told.append((str(error), said, len(calls) // 2))
            if not isinstance(error, StarvedError):
                return error, told
        else:
            return (model, result), told
    raise AssertionError(told)


def test_where_a_process_finds_no_memory_any_more_fresh_ones_go_on(data, tmp_path):
    trial = make_trial("training.images=40")
    run(trial, data, tmp_path / "fresh", stop_at=2)
    (model, result), told = in_fresh_processes(trial, data, tmp_path / "fresh", most=2)
    assert (result.finished, result.passes, result.recompute, result.restarts) == (True, 4, False, 2)
    assert [(said, tried) for _, said, tried in told] == [
        (["out of memory at step 2: in a fresh process a batch takes 2 passes from here on"], 4),
        (["out of memory at step 2: in a fresh process a batch takes 4 passes from here on"], 1),  # it does not help
    ]
    run(trial, data, tmp_path / "same", stop_at=2)
    same = build_model(trial, data.image, CPU)
    same.register_forward_pre_hook(too_large(2, ERRORS[1]))
    _, retried, _ = run(trial, data, tmp_path / "same", same)
    assert retried.passes == 4
    assert weights(model) == weights(same)
    assert result.curves == retried.curves


def test_fresh_processes_end_at_one_image_whose_cells_compute_again(data, tmp_path):
    trial = make_trial("training.images=16", row="nvae")
    (_, result), told = in_fresh_processes(trial, data, tmp_path / "one", most=1, recomputed=False)
    assert (result.finished, result.passes, result.recompute, result.restarts) == (True, 8, True, 4)
    error, told = in_fresh_processes(trial, data, tmp_path / "none", most=0)
    assert "one image at a time ran out of memory, after 4 starts of a fresh process" in str(error)
    assert [tried for _, _, tried in told] == [5, 1, 1, 1, 1]


@pytest.fixture
def process_group():
    """A default group of this process alone, in which it can be any of several ranks."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def as_rank(ranks, trial, data, folder, most):
    """A training as one of several ranks, whose model takes `most` images at a time: what was said, and the error."""
    model, said = build_model(trial, data.image, CPU, shared=True), []
    model.decoder.register_forward_pre_hook(too_large(most, ERRORS[1]))
    with pytest.raises(GivenUpError) as raised:
        train(model, trial, data, folder, lambda *event: None, lambda: False, said.append, ranks=ranks)
    return said, raised.value


@pytest.mark.usefixtures("process_group")
def test_a_rank_that_finds_no_memory_leaves_word_for_fresh_processes(data, tmp_path):
    """The first saves the state; another a note, twice as many passes each time, heeded by any number of processes."""
    trial = make_trial("training.images=16")
    said, error = as_rank(Ranks(0, 2), trial, data, tmp_path / "first", 2)
    assert isinstance(error, StarvedError)
    assert said == ["out of memory at step 0: in a fresh process a batch takes 2 passes from here on"]
    assert restore(build_model(trial, data.image, CPU), trial, tmp_path / "first").passes == 2
    other = tmp_path / "other"
    other.mkdir()
    assert isinstance(as_rank(Ranks(1, 2), trial, data, other, 1)[1], StarvedError)
    assert [path.name for path in other.iterdir()] == [tensors.STARVED]
    said, error = as_rank(Ranks(1, 2), trial, data, other, 1)  # 2 passes of 4 images, 2 a rank, are too much still
    assert isinstance(error, StarvedError)
    assert said[0] == "memory ran out in one of the processes: a batch takes 2 passes from here on"
    _, result, said = run(trial, data, other)
    assert (result.finished, result.passes, result.restarts) == (True, 4, 2)
    assert said == ["memory ran out in one of the processes: a batch takes 4 passes from here on"]


@pytest.mark.usefixtures("process_group")
def test_one_image_a_rank_that_is_too_much_ends_the_training(data, tmp_path):
    trial = make_trial("training.images=16")
    for _ in range(2):
        assert isinstance(as_rank(Ranks(1, 2), trial, data, tmp_path, 0)[1], StarvedError)
    _, error = as_rank(Ranks(1, 2), trial, data, tmp_path, 0)
    assert not isinstance(error, StarvedError)
    assert "training of one image at a time ran out of memory, after 2 starts of a fresh process" in str(error)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"passes": "x", "recompute": 0, "restarts": 1}'])
def test_a_note_that_cannot_be_read_is_left_out(data, tmp_path, capsys, content):
    (tmp_path / tensors.STARVED).write_text(content)
    _, result, _ = run(make_trial("training.images=8"), data, tmp_path)
    assert (result.finished, result.passes) == (True, 1)
    assert capsys.readouterr().err.count("\n") == 1

"""Timing in turns, what timings say, peak memory and breakdown. No clock decides any of these tests."""

import json
import mmap
from types import SimpleNamespace

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.machine import peak
from benchmarks.speed import clock, memory
from benchmarks.speed.breakdown import FUSED, KINDS, OTHER, PREFIX, kind_of, step_breakdown
from benchmarks.speed.spread import NO_WINNER, Goal, Spread, paired_ratio, spread, verdict, winner
from benchmarks.speed.target import preset_target
from benchmarks.speed.work import job_of

CPU = torch.device("cpu")
MIB = 2**20
ROUNDS = clock.MIN_ROUNDS
ROUNDING = 1e-9  # shares are float64 sums of a few terms


class FakeClock:
    """A clock that calls move: `call(name, seconds)` makes one that takes so long."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def work():
            self.calls.append(name)
            self.now += seconds

        return work


# What repeated timings say


def test_quartiles_are_linear_between_values():
    assert spread([4, 1, 3, 2]) == Spread(1.75, 2.5, 3.25, 4)
    assert spread([2, 1]) == Spread(1.25, 1.5, 1.75, 2)
    assert spread([5.0]) == Spread(5, 5, 5, 1)


def test_the_ratio_is_that_of_paired_rounds():
    """Rounds that were disturbed as a whole leave it alone."""
    slow = [10.0, 1.0, 20.0, 5.0]
    assert paired_ratio([2 * value for value in slow], slow) == Spread(2, 2, 2, 4)


@pytest.mark.parametrize(
    ("a", "b", "ratio", "said"),
    [
        (Spread(9, 10, 11, 8), Spread(4, 5, 6, 8), Spread(1.9, 2, 2.1, 8), "a is faster"),
        (Spread(4, 5, 6, 8), Spread(9, 10, 11, 8), Spread(0.4, 0.5, 0.6, 8), "b is faster"),
        (Spread(5, 10, 11, 8), Spread(4, 5, 6, 8), Spread(1.9, 2, 2.1, 8), NO_WINNER),
        (Spread(9, 10, 11, 8), Spread(4, 5, 6, 8), Spread(0.9, 2, 2.1, 8), NO_WINNER),
    ],
)
def test_no_winner_is_called_where_spreads_overlap(a, b, ratio, said):
    assert winner(a, b, ratio, ("a", "b")) == said


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "said"),
    [
        (3.1, 3.3, False, "stretch met"),
        (2.1, 3.3, False, "goal met"),
        (1.9, 2.1, False, "goal within the spread"),
        (1.5, 1.9, False, "goal missed"),
        (0.3, 0.39, True, "stretch met"),
        (0.5, 0.59, True, "goal met"),
        (0.5, 0.7, True, "goal within the spread"),
        (0.7, 0.8, True, "goal missed"),
    ],
)
def test_a_goal_is_met_only_by_the_whole_range(low, high, lower_is_better, said):
    goal = Goal(0.6, 0.4, True) if lower_is_better else Goal(2, 3)
    ratio = Spread(low, (low + high) / 2, high, 8)
    far = Spread(10, 11, 12, 8), Spread(1, 2, 3, 8)
    assert verdict(*far, ratio, goal) == said
    assert verdict(far[0], far[0], ratio, goal) == NO_WINNER


# Timing in turns


def test_calls_are_interleaved_in_alternating_order():
    fake = FakeClock()
    times = clock.interleave({"a": fake.call("a", 0.25), "b": fake.call("b", 0.5)}, 0.1, clock=fake)
    before = clock.WARMUP_CALLS
    timed = fake.calls[2 * before :]
    assert fake.calls[: 2 * before] == ["a"] * before + ["b"] * before
    assert timed == ["a", "b", "b", "a"] * (ROUNDS // 2)
    assert {name: found.wall for name, found in times.items()} == {"a": [0.25] * ROUNDS, "b": [0.5] * ROUNDS}
    assert all(len(found.cpu) == ROUNDS for found in times.values())


def test_few_rounds_of_long_calls_are_enough():
    fake = FakeClock()
    found = clock.interleave({"a": fake.call("a", clock.LONG_SECONDS / 3)}, 1.0, clock=fake)
    assert len(found["a"].wall) == clock.LONG_ROUNDS


def test_a_turn_repeats_short_calls_after_one_that_is_not_timed():
    fake = FakeClock()
    turns = clock.Turns(fake.call("a", clock.TURN_SECONDS / 10), clock=fake)
    assert turns.repeats == 10
    before = len(fake.calls)
    assert turns.seconds()[0] == pytest.approx(clock.TURN_SECONDS / 10)
    assert len(fake.calls) - before == 11


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, ROUNDS), (30.0, 30), (1e9, clock.MAX_ROUNDS)])
def test_rounds_go_on_until_the_time_is_spent(seconds, rounds):
    fake = FakeClock()
    assert len(clock.interleave({"a": fake.call("a", 1.0)}, seconds, clock=fake)["a"].wall) == rounds


@pytest.mark.parametrize(("seconds", "calls"), [(0.1, clock.WARMUP_CALLS), (2.0, clock.LEAST_WARMUP), (5.0, 1)])
def test_slow_calls_are_warmed_up_less(seconds, calls):
    fake = FakeClock()
    assert clock.warm_up(fake.call("a", seconds), fake) == calls == len(fake.calls)


def test_the_device_is_waited_for_inside_the_timed_part():
    fake = FakeClock()
    times = clock.interleave({"a": fake.call("a", 1.0)}, 0.0, fake.call("drain", 2.0), fake)
    assert set(times["a"].wall) == {3.0}


def test_other_processes_are_told_from_our_own(tmp_path, monkeypatch):
    """Over 10 s of 4 cores: 20 s worked, 8 of them ours; 12 of 40 are the others'."""
    ticks = clock.os.sysconf("SC_CLK_TCK")
    file = tmp_path / "stat"
    monkeypatch.setattr(clock, "PROCESSOR_TIMES", file)
    monkeypatch.setattr(clock.os, "cpu_count", lambda: 4)
    fake, own = FakeClock(), [1.0]
    monkeypatch.setattr(clock.time, "perf_counter", fake)
    monkeypatch.setattr(clock, "own_seconds", lambda workers: own[0])
    file.write_text(f"cpu  {3 * ticks} {ticks} 0 77 88 0 0 0 0 0\n")
    watch = clock.Watch()
    file.write_text(f"cpu  {13 * ticks} {2 * ticks} {4 * ticks} 99 99 {ticks} {2 * ticks} {2 * ticks} 5 5\ncpu0 1\n")
    fake.now, own[0] = 10.0, 9.0
    assert watch.stop().other_cpu == pytest.approx(12 / 40)


@pytest.mark.parametrize("text", [None, "", "intr 1 2 3 4 5 6 7 8 9"])
def test_without_the_systems_counters_others_are_unknown(text, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(clock, "PROCESSOR_TIMES", tmp_path / "stat")
    assert clock.Watch().stop().other_cpu is None


# Memory


def test_a_peak_is_seen_after_it_is_over():
    before = peak.held(CPU)
    with mmap.mmap(-1, 64 * MIB) as block:  # fresh pages, which no allocator has kept from before
        for page in range(0, 64 * MIB, mmap.PAGESIZE):
            block[page] = 1
    assert peak.highest(CPU) - before >= 60 * MIB


def test_memory_without_the_systems_files(tmp_path, monkeypatch):
    monkeypatch.setattr(peak, "STATUS", tmp_path / "status")
    monkeypatch.setattr(peak, "RESET", tmp_path / "absent" / "clear_refs")
    assert peak.highest(CPU) >= peak.held(CPU) > 10 * MIB


def test_the_peak_of_a_step_comes_from_a_process_of_its_own():
    request = memory.Request("nvae-tiny", None, ["training.batch_size=2"], False, "cpu", 1, [])
    peak = memory.measure_peak(request)
    assert 0 < peak.above < peak.whole


def test_errors_of_that_process_are_one_line():
    request = memory.Request("nvae-tiny", None, ["training.bach_size=2"], False, "cpu", 1, [])
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        memory.measure_peak(request)


# Breakdown


def event(*names, scope=0, sequence=-1):
    """The innermost of nested events, named from the outside in."""
    inner = None
    for name in names:
        inner = SimpleNamespace(name=name, cpu_parent=inner, scope=0, sequence_nr=-1)
    inner.scope, inner.sequence_nr = scope, sequence
    return inner


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (event("step", "aten::conv2d", "aten::mkldnn_convolution"), "convolutions"),
        (event("step", "aten::linear", "aten::addmm"), "convolutions"),
        (event("step", "ConvolutionBackward0", "aten::empty"), "convolutions"),
        (event("step", "NativeBatchNormBackward0"), "norms"),
        (event("step", "FusedCellBackward", "aten::mm"), FUSED),
        (event("step", f"{PREFIX}latents", "aten::mul"), "latents"),
        (event("step", "NativeGaussianBackward"), "latents"),
        (event("step", f"{PREFIX}likelihood", "aten::mm"), "likelihood"),
        (event("step", f"{PREFIX}regularisers", "aten::bmm"), "regularisers"),
        (event("step", "Optimizer.step#Adamax.step", "aten::add_"), "optimizer"),
        (event("step", "aten::silu"), OTHER),
        (event("step", "MulBackward0", scope=1, sequence=7), "likelihood"),
        (event("step", "MulBackward0", scope=1, sequence=8), OTHER),
    ],
)
def test_kinds_of_operations(found, kind):
    assert kind_of(found, {7: "likelihood"}) == kind


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A breakdown of a model that has everything, and its trace."""
    path = tmp_path_factory.mktemp("trace") / "folder" / "trace.json"
    overrides = ["training.batch_size=2", "model.norm_penalty=0.01", "model.weight_norm=true"]
    return step_breakdown(job_of(preset_target("nvae-tiny").overridden(overrides), CPU), path), path


def test_every_kind_has_its_share_and_they_sum_to_one(traced):
    shares, _ = traced
    assert tuple(shares) == KINDS
    assert shares["convolutions"] + shares[FUSED] > 0
    assert all(shares[kind] > 0 for kind in ("latents", "likelihood", "regularisers", "optimizer", OTHER))
    assert sum(shares.values()) == pytest.approx(1, abs=ROUNDING)


def test_the_trace_is_json_of_one_step(traced):
    _, path = traced
    names = [entry.get("name") for entry in json.loads(path.read_text())["traceEvents"]]
    assert names.count("step") >= 1
    assert f"{PREFIX}latents" in names

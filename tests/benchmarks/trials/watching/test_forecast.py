"""The time left: of trials whose costs are made up, by a clock that is set; and of a run that was recorded."""

import json
from pathlib import Path

import pytest

from benchmarks.trials.watching.forecast import SECONDS, Forecast
from benchmarks.trials.watching.workload import FEATURES, REFITTED, Workload

RECORDED = Path(__file__).resolve().parents[3] / "data" / "recorded_run.json"
WITHIN = 0.25
"""Of the true time left, from the first tenth on; at the very end, of what is left after nine tenths."""


EVALUATION = {"likelihood": 6000, "reconstruction": 1400, "samples": 500, FEATURES: 0, REFITTED: 1000}


def workload(row, **fields):
    given = {"macs": 10, "step": 96, "steps": 7500, "budget": None, "validation": 700, "validations": 4}
    return Workload(row=row, model=row, **{"evaluation": EVALUATION, **given, **fields})


class Trial:
    """Seconds of a made-up trial by phase: passes at its own speed, some of them dearer than the rule has it."""

    def __init__(self, work, each, dear=1.3, start=9.0):
        training = work.training(work.steps, 1.0) * each
        evaluation = {p: dear * (n * each + SECONDS.get(p, 0.0)) for p, n in work.evaluation.items()}
        self.seconds = {"start": start, "train": training, **evaluation}
        self.work, self.whole = work, sum(self.seconds.values())

    def at(self, spent):
        """Phase, done and total after so many seconds."""
        for phase, seconds in self.seconds.items():
            if spent < seconds:
                total = self.work.steps if phase == "train" else 1000
                return phase, int(total * spent / seconds), total
            spent -= seconds
        return None


def simulated(trials, jobs, timing, step_seconds=None):
    """Errors of the time left by share of the time that is over: those of the run, and of each trial."""
    now = 0.0
    forecast = Forecast({name: one.work for name, one in trials.items()}, jobs, lambda: now, step_seconds)
    waiting, running, ends = list(trials), {}, []
    of_run, of_trials = [], []

    def note():
        of_run.append((now, forecast.run_left()))
        of_trials.extend(
            ((now - since) / trials[name].whole, forecast.trial_left(name), since + trials[name].whole - now)
            for name, since in running.items()
        )

    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            running[name] = now
            forecast.begun(name)
        for name, since in list(running.items()):
            found = trials[name].at(now - since)
            if found is None:
                del running[name]
                forecast.ended(name)
                ends.append(name)
            elif found[0] not in ("start", FEATURES):
                forecast.reported(name, *found)
            elif found[0] == FEATURES:
                forecast.reported(name, FEATURES, 0, 1)
        note()
        now += 0.5
    for name in ends:
        forecast.reported(name, "throughput", 0, 1)
        note()
        now += timing
        forecast.reported(name, "throughput", 1, 1)
    return [(at / now, left, now - at) for at, left in of_run], of_trials


def errors(found):
    """(share that is over, error in proportion) from the first tenth to nine tenths."""
    return [(share, left / true - 1) for share, left, true in found if 0.1 <= share <= 0.9]


SUITE = {"slow": 9e-4, "middle": 4e-4, "fast": 2e-4, "faster": 1e-4}


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_a_run_and_its_trials_are_within_a_quarter_after_the_first_tenth(jobs):
    """Rows of one size whose speeds are 9 times apart; the machine was 1.2 times as fast when they were measured."""
    trials = {row: Trial(workload(row), each) for row, each in SUITE.items()}
    steps = {row: each * 96 / 1.2 for row, each in SUITE.items()}
    of_run, of_trials = simulated(trials, jobs, timing=18.0, step_seconds=steps)
    assert len(errors(of_run)) > 100
    assert len(errors(of_trials)) > 300
    assert max(abs(error) for _, error in errors(of_run)) < WITHIN
    assert max(abs(error) for _, error in errors(of_trials)) < WITHIN


def test_evaluations_that_take_as_long_as_the_training_are_counted():
    """At the tenth nothing has been evaluated yet; a later seed goes by what the first one's took."""
    work = workload("vae", evaluation={"likelihood": 3_000_000, "reconstruction": 1400})
    trials = {f"vae seed {seed}": Trial(work, 4e-4, dear=1.2) for seed in range(3)}
    of_run, of_trials = simulated(trials, 1, timing=18.0)
    assert trials["vae seed 0"].seconds["likelihood"] > trials["vae seed 0"].seconds["train"]
    assert max(abs(error) for _, error in errors(of_run)) < WITHIN
    assert max(abs(error) for _, error in errors(of_trials)) < WITHIN
    later = [left / true - 1 for share, left, true in of_trials[-len(of_trials) // 3 :] if 0.1 < share < 0.9]
    assert max(abs(error) for error in later) < 0.05  # as the first two


def test_a_training_by_the_clock_takes_its_budget():
    work = workload("vae", steps=None, budget=60.0)
    now = 0.0
    forecast = Forecast({"vae": work}, 1, lambda: now)
    forecast.begun("vae")
    now = 10.0
    forecast.reported("vae", "train", 0, 100)
    now = 40.0
    forecast.reported("vae", "train", 50, 100)
    each = 30.0 / (96 * 50 + 2 * 700)
    expected = 30.0 + sum(work.evaluation[p] * each + SECONDS.get(p, 0.0) for p in EVALUATION)
    assert forecast.trial_left("vae") == pytest.approx(expected, rel=0.05)


def test_nothing_is_claimed_before_anything_is_known():
    forecast = Forecast({"a": workload("a"), "b": workload("b")}, 1, lambda: 0.0)
    assert forecast.run_left() is None
    forecast.begun("a")
    assert forecast.trial_left("a") is None


def test_steps_that_come_twice_do_not_confuse_the_speed():
    """After a return to a good state the speed is measured anew."""
    now = 0.0
    forecast = Forecast({"a": workload("a", validations=0)}, 1, lambda: now)
    forecast.begun("a")
    for now, step in ((10.0, 0), (20.0, 100), (21.0, 50), (31.0, 150)):
        forecast.reported("a", "train", step, 7500)
    evaluation = forecast.trial_left("a") - 7350 * 0.1
    assert 0 < evaluation < 60


def test_a_machine_that_stood_still_says_nothing_of_the_speed():
    """A training of ten steps a second, all of whose processes wait for a minute on the way."""
    now = 0.0
    forecast = Forecast({"a": workload("a", validations=0)}, 1, lambda: now)
    forecast.begun("a")
    for step in range(1, 1500, 5):
        now = 10 + step / 10 + 60 * (step > 750)
        forecast.reported("a", "train", step, 7500)
        if step > 100:
            assert forecast.trial_left("a") == pytest.approx((7500 - step) / 10 + 16, rel=WITHIN)


def test_a_recorded_run_is_within_a_quarter_after_the_first_tenth():
    """The quick suite at 12,800 images, two trials at a time on two cores that other processes used as well."""
    record = json.loads(RECORDED.read_text())
    now = 0.0
    work = {name: Workload(**fields) for name, fields in record["workloads"].items()}
    forecast, found = Forecast(work, record["jobs"], lambda: now, record["step_seconds"]), []
    for now, kind, *event in record["events"]:
        getattr(forecast, kind)(*event)
        found.append((now / record["seconds"], forecast.run_left(), record["seconds"] - now))
    until = [(share, left / true - 1) for share, left, true in found if 0.1 <= share <= 0.7]
    assert len(until) > 200
    assert max(abs(error) for _, error in until) < WITHIN
    assert found[-1][1] == 0

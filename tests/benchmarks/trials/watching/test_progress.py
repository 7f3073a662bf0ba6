"""What is seen of a run: bars, a line a minute, JSON."""

import io
import json
import math
import re

import pytest

from benchmarks.trials.watching.display import Bars, JsonLines, Lines, SaidLines
from benchmarks.trials.watching.events import Begun, Ended, Reported, Said
from benchmarks.trials.watching.forecast import Forecast
from benchmarks.trials.watching.progress import Progress
from benchmarks.trials.watching.workload import workloads

KEYS = {"event", "time", "trial", "phase", "step", "steps", "loss", "unit", "images_per_second", "seconds_left"}


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def shown(planned_run):
    """`shown(view, likelihood)`: what a view writes of a training of 400 steps in 200 s, a report every half second."""

    def show(make_view, likelihood="bernoulli"):
        stream, clock, plan = io.StringIO(), Clock(), planned_run(likelihood)
        (planned,) = plan.trials
        forecast = Forecast(workloads(plan), 1, clock)
        progress = Progress(forecast, make_view(stream, clock), plan.data.image.dims, clock)
        progress.tell(Begun(planned))
        clock.now = 5.0
        for step in range(401):
            progress.tell(Reported(planned, "train", step, 400, {"loss": 64 * math.log(2) * 3}))
            clock.now += 0.5
        progress.tell(Said("vae seed 0: something happened"))
        progress.tell(Reported(planned, "likelihood", 0, 40))
        progress.tell(Ended(planned))
        progress.tell(Reported(planned, "throughput", 0, 1))
        clock.now += 20
        progress.tell(Reported(planned, "throughput", 1, 1))
        progress.close(hurry=False)
        return stream.getvalue()

    return show


def test_a_line_a_minute_where_there_is_no_terminal(shown):
    """221 s from the first report to the last: lines at 0, 60, 120 and 180 s, and what is said at once."""
    *lines, said = shown(lambda stream, clock: Lines("mine", stream, clock)).splitlines()
    assert len(lines) == 4
    assert "400" in lines[0]
    line = r"mine: trials 0/1, \d\d:\d\d left; vae seed 0: train 120/400, 133.1 nats/image, 32 images/s, \d\d:\d\d left"
    assert re.fullmatch(line, lines[1])
    assert said == "vae seed 0: something happened"


def test_over_integer_levels_the_loss_is_in_bits(shown):
    lines = shown(lambda stream, clock: Lines("mine", stream, clock), "logistic-mixture").splitlines()
    assert "train 120/400, 3 bits/dim" in lines[1]


def test_every_line_is_json(shown):
    objects = [json.loads(line) for line in shown(lambda stream, clock: JsonLines(stream, clock)).splitlines()]
    states = [one for one in objects if one["event"] != "said"]
    assert all(set(one) == KEYS for one in states)
    assert [set(one) for one in objects if one["event"] == "said"] == [{"event", "time", "text"}]
    training = [one for one in states if (one["trial"], one["phase"]) == ("vae seed 0", "train")]
    assert 40 <= len(training) <= 44  # one in five seconds, and the last
    steps = [one["step"] for one in training]
    assert steps == sorted(steps)
    assert training[-1] | {"time": ""} == {
        "event": "progress",
        "time": "",
        "trial": "vae seed 0",
        "phase": "train",
        "step": 400,
        "steps": 400,
        "loss": pytest.approx(64 * math.log(2) * 3, abs=1e-3),
        "unit": "nats/image",
        "images_per_second": 32.0,
        "seconds_left": training[-1]["seconds_left"],
    }
    assert training[20]["seconds_left"] == pytest.approx(100, rel=0.25)
    assert [one["phase"] for one in states if one["event"] == "ended"] == [
        "interrupted",
        "throughput",
    ]  # without a record
    run = [one for one in states if one["trial"] is None]
    assert (run[-1]["step"], run[-1]["steps"], run[-1]["seconds_left"]) == (1, 1, 0.0)


def test_a_trial_that_starts_again_has_not_ended(planned_run, concluded):
    stream, clock, plan = io.StringIO(), Clock(), planned_run()
    (planned,) = plan.trials
    progress = Progress(Forecast(workloads(plan), 1, clock), JsonLines(stream, clock), plan.data.image.dims, clock)
    for step in (0, 200):
        progress.tell(Begun(planned))
        progress.tell(Reported(planned, "train", step, 400))
        clock.now += 50
        progress.tell(Reported(planned, "train", step + 190, 400))
        if step == 0:
            progress.tell(Ended(planned, again=True))
            assert list(progress.forecast.waiting) == ["vae seed 0"]
    concluded(planned)
    progress.tell(Ended(planned))
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["phase"] for one in objects if one["event"] == "ended"] == ["starts again", "done"]
    assert {one["step"] for one in objects if one["trial"] is None} == {0}
    assert len(progress.ended) == 1


def test_bars_for_the_run_and_for_each_trial(shown):
    drawn = shown(lambda stream, clock: Bars("mine", stream))
    assert re.search(r"mine +\d+%\|.*\| trials 0/1", drawn)
    assert re.search(r"vae seed 0 +\d+%\|.*nats/image, 32 images/s, \d\d:\d\d left", drawn)
    assert "vae seed 0: something happened\n" in drawn


def test_what_is_printed_beside_the_progress_is_json_too():
    stream = io.StringIO()
    said = SaidLines(stream)
    print("a note", file=said)
    print("half a", end="", file=said)
    assert [json.loads(line)["text"] for line in stream.getvalue().splitlines()] == ["a note"]
    print(" line", file=said)
    assert json.loads(stream.getvalue().splitlines()[1])["text"] == "half a line"


def test_a_finished_plan_leaves_nothing_to_do(planned_run, concluded):
    plan = planned_run()
    assert list(workloads(plan)) == ["vae seed 0"]
    (work,) = workloads(plan).values()
    assert (work.steps, work.step, work.validation, work.timed) == (400, 48, 40, True)
    assert work.evaluation["likelihood"] == pytest.approx(0.6 * 20 * 40)
    concluded(plan.trials[0], timed=True)
    (work,) = workloads(plan).values()  # its evaluation is not that of the suite
    assert (work.steps, list(work.evaluation)) == (0, ["likelihood", "reconstruction", "samples", "pictures"])

"""Tracking: what a tracker is given, that no step comes twice, and that its failure is nobody else's."""

import importlib.util
import json
import sqlite3
import sys
import threading
import types

import pytest
from tiny_run import records, run_here, write_suite

from benchmarks.cli.parser import run_command
from benchmarks.trials.watching import tracking
from benchmarks.trials.watching.events import Begun, Ended, Reported
from benchmarks.trials.watching.trackers import Package, TensorBoard
from benchmarks.trials.watching.tracking import Tracking

pytestmark = pytest.mark.usefixtures("unsaved")

STEPS = 40


def lacks(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed; pip install -e '.[{package}]'")


class Fake(types.ModuleType):
    """A package with the three calls; it keeps what it is given, and fails from the `broken`-th call of log on."""

    def __init__(self, name, broken=None):
        super().__init__(name)
        self.inits, self.logged, self.finished, self.broken = [], [], 0, broken

    def init(self, **how):
        self.inits.append(how)
        print("the package prints")
        return self

    def Image(self, picture):  # noqa: N802
        return "picture", picture.shape

    def log(self, values, step):
        if self.broken is not None and len(self.logged) >= self.broken:
            raise OSError("the server is\naway")
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    def install(name, broken=None):
        monkeypatch.setitem(sys.modules, name, Fake(name, broken))
        return sys.modules[name]

    return install


def training(planned, first=0, last=STEPS):
    """Events of a training: a report every second step, validations after 20 and 40."""
    yield Begun(planned)
    for step in range(first + 2, last + 1, 2):
        seen = {"loss": float(step), "learning rate": 1e-3, "gradient norm": 2.0}
        seen |= {"validation elbo": -float(step)} if step % 20 == 0 else {}
        yield Reported(planned, "train", step, STEPS, seen)


def tracked(tracker, plan, *events):
    """What a run of those events leaves with a tracker."""
    watcher = Tracking(tracker, plan)
    for event in events:
        watcher.tell(event)
    watcher.close(hurry=False)


def followed_twice(tracker, plan, concluded, again):
    """A training that is killed after step 30 and goes on from 16 in another run; then it is evaluated again."""
    (planned,) = plan.trials
    planned.folder.mkdir(parents=True)
    tracked(tracker(), plan, *training(planned, 0, 30))
    concluded(planned, timed=True)
    timed = Reported(planned, "throughput", 1, 1)
    tracked(tracker(), plan, *training(planned, 16), Ended(planned), Reported(planned, "throughput", 0, 1), timed)
    tracked(tracker(), plan, Ended(planned))  # nothing new
    if again:
        concluded(planned, elbo=-90.0, timed=True)
        tracked(tracker(), plan, Ended(planned))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_package_is_given_curves_metrics_pictures_and_config(planned_run, concluded, fake, name):
    package, plan = fake(name), planned_run()
    followed_twice(lambda: Package(name), plan, concluded, again=True)
    first, *later = package.inits
    assert len(later) == 2  # none where nothing is new
    assert all(one["name"] == first["name"] and one["resume"] == "allow" for one in later)
    assert first["name"].startswith(plan.trials[0].folder.name)
    assert first.get("id") == (first["name"] if name == "wandb" else None)
    assert (first["project"], first["group"]) == ("vaebench", "mine")
    assert (first["config"]["seed"], first["config"]["training"]["batch_size"]) == (0, 16)
    assert package.finished == 3
    curve = [(step, values) for step, values in package.logged if "training/loss" in values]
    assert [step for step, _ in curve] == list(range(2, STEPS + 1, 2))
    assert curve[-1][1] == {
        "training/loss": 40.0,
        "training/learning rate": 1e-3,
        "training/gradient norm": 2.0,
        "training/images": 640.0,
        "validation/elbo": -40.0,
    }
    tested = {step: values for step, values in package.logged if "test/elbo" in values}
    assert {step: values["test/elbo"] for step, values in tested.items()} == {40: -100.0, 41: -90.0}
    assert tested[40]["reconstructions"] == ("picture", (17, 107, 3))
    assert "test/kid" not in tested[40]  # it has no value
    assert [values for _, values in package.logged if "machine/train_throughput" in values] == [
        {"machine/train_throughput": 500.0}
    ]


def test_a_point_of_few_is_the_mean_of_its_steps(planned_run, fake, monkeypatch):
    package, plan = fake("trackio"), planned_run()
    monkeypatch.setattr(tracking, "POINTS", 4)
    tracked(Package("trackio"), plan, *training(plan.trials[0]))
    steps = [(step, values["training/loss"]) for step, values in package.logged]
    assert steps == [(10, 6.0), (20, 16.0), (30, 26.0), (40, 36.0)]


def test_what_was_trained_without_a_tracker_comes_from_its_record(planned_run, concluded, fake):
    package, plan = fake("trackio"), planned_run()
    concluded(plan.trials[0])
    tracked(Package("trackio"), plan, Ended(plan.trials[0]))
    curves = [(step, values) for step, values in package.logged if "training/loss" in values]
    assert [step for step, _ in curves] == [10, 20, 30, 40]
    assert curves[1][1] == {"training/loss": 3.0, "training/images": 320.0, "validation/elbo": -3.5}


def test_another_training_of_the_same_trial_is_another_run(planned_run, fake):
    package, plan = fake("trackio"), planned_run()
    (planned,) = plan.trials
    tracked(Package("trackio"), plan, *training(planned, 0, 10))
    (planned.folder / tracking.MEMO).unlink()
    tracked(Package("trackio"), plan, *training(planned, 0, 10))
    assert package.inits[0]["name"] != package.inits[1]["name"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"trackio": 3}', '{"trackio": {"name": 1}}', '{"trackio": {"step": "x"}}']
)
def test_a_damaged_memo_is_a_new_run(planned_run, fake, content):
    package, plan = fake("trackio"), planned_run()
    plan.trials[0].folder.mkdir(parents=True)
    (plan.trials[0].folder / tracking.MEMO).write_text(content)
    tracked(Package("trackio"), plan, *training(plan.trials[0], 0, 10))
    assert len(package.logged) == 5


@pytest.mark.parametrize("broken", [0, 3])
def test_a_tracker_that_fails_is_one_line(planned_run, concluded, fake, capsys, broken):
    package, plan = fake("trackio", broken), planned_run()
    (planned,) = plan.trials
    concluded(planned)
    tracked(Package("trackio"), plan, *training(planned), Ended(planned))
    assert capsys.readouterr().err.splitlines() == [
        "warning: trackio: tracking ends here, the run goes on: the server is"
    ]
    assert len(package.logged) == broken


def test_a_tracker_that_hangs_is_left(planned_run, fake, monkeypatch, capsys):
    """It is waited for; what it does afterwards is nobody's."""
    package, released = fake("trackio"), threading.Event()
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 0.05)
    monkeypatch.setattr(package, "init", lambda **how: released.wait())
    plan = planned_run()
    watcher = Tracking(Package("trackio"), plan)
    watcher.tell(Reported(plan.trials[0], "train", 1, 1, {"loss": 1.0}))
    watcher.close(hurry=False)
    released.set()
    watcher.thread.join()
    assert "has not taken everything" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (("--tensorboard", "events"), "torch.utils.tensorboard", "tensorboard"),
        (("--track", "wandb"), "wandb", "wandb"),
        (("--track", "trackio"), "trackio", "trackio"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, capsys, words, module, extra):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    suite = write_suite(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run_command(["run", str(suite), "--device", "cpu", "--out", "out", *words]) == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"pip install -e '.[{extra}]'\n")
    assert (said.err.count("\n"), said.out) == (1, "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("untimed")
def test_a_run_with_a_tracker_that_breaks_ends_well_and_its_log_is_json(tmp_path, fake):
    package = fake("trackio", broken=1)
    words = ("--models", "vae", "--out", tmp_path / "out", "--track", "trackio", "--log", "json")
    result = run_here("run", write_suite(tmp_path), *words)
    assert result.returncode == 0, result.stderr
    assert records(tmp_path / "out")["vae"]["status"] == "done"
    assert len(package.logged) == 1
    assert result.stdout.startswith("## tiny")
    objects = [json.loads(line) for line in result.stderr.splitlines()]
    said = [one["text"] for one in objects if one["event"] == "said"]
    assert [text for text in said if text.startswith("warning")] == [
        "warning: trackio: tracking ends here, the run goes on: the server is"
    ]
    phases = list(dict.fromkeys(one["phase"] for one in objects if one.get("trial") == "vae seed 0"))
    assert phases[:5] == ["start", "train", "likelihood", "reconstruction", "samples"]
    assert {"done", "throughput"} <= set(phases)
    loss = [one["loss"] for one in objects if one.get("phase") == "train"]
    assert None not in loss


@lacks("tensorboard")
def test_tensorboard_reads_back_what_was_written(planned_run, concluded, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = planned_run()
    followed_twice(lambda: TensorBoard(tmp_path / "events"), plan, concluded, again=True)
    (folder,) = (tmp_path / "events" / "mine").iterdir()
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    curve = found.Scalars("training/loss")
    assert [one.step for one in curve] == list(range(2, STEPS + 1, 2))
    assert curve[-1].value == 40.0
    assert [(one.step, one.value) for one in found.Scalars("validation/elbo")] == [(20, -20.0), (40, -40.0)]
    assert [(one.step, one.value) for one in found.Scalars("test/elbo")] == [(40, -100.0), (41, -90.0)]
    assert [one.value for one in found.Scalars("machine/train_throughput")] == [500.0]
    assert {(one.step, one.width, one.height) for one in found.Images("reconstructions")} == {
        (40, 107, 17),
        (41, 107, 17),
    }
    (config,) = found.Tensors("config/text_summary")
    assert b'"batch_size": 16' in config.tensor_proto.string_val[0]


@lacks("trackio")
def test_trackio_keeps_what_was_logged(planned_run, concluded, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read at the import
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    plan = planned_run()
    followed_twice(lambda: Package("trackio"), plan, concluded, again=False)
    with sqlite3.connect(tmp_path / "trackio" / "vaebench.db") as base:
        rows = base.execute("select run_name, step, cast(metrics as text) from metrics order by step").fetchall()
    assert len({name for name, *_ in rows}) == 1
    steps = [step for _, step, metrics in rows if "training/loss" in metrics]
    assert steps == list(range(2, STEPS + 1, 2))


@lacks("wandb")
def test_wandb_takes_it_offline(planned_run, concluded, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    plan = planned_run()
    (planned,) = plan.trials
    concluded(planned, timed=True)
    tracked(Package("wandb"), plan, *training(planned), Ended(planned))
    Package("wandb").module.teardown()  # its process writes what it has
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    memo = json.loads((planned.folder / tracking.MEMO).read_text())["wandb"]
    assert folder.name.endswith(memo["name"])
    (log,) = folder.glob("*.wandb")
    assert b"training/loss" in log.read_bytes()
    assert len(list((folder / "files" / "media" / "images").glob("reconstructions*.png"))) == 1
    assert "warning" not in capsys.readouterr().err

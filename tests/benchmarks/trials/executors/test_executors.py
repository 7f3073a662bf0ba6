"""One plan, several executors: trials are handed over once, followed through the folder, and again where lost."""

import sys

import pytest
from tiny_run import run_here, write_suite

from benchmarks.base.errors import UserError
from benchmarks.trials.claims import Claim, claim
from benchmarks.trials.executors import slurm
from benchmarks.trials.executors.choice import Wanted, executor_of
from benchmarks.trials.executors.interface import RETRIES
from benchmarks.trials.executors.note import JobNote, note_of
from benchmarks.trials.executors.remote import Remote
from benchmarks.trials.watching.events import Begun, Ended, Reported, Said

pytestmark = pytest.mark.usefixtures("unsaved")


class Scripted:
    """A cluster in which `work(task)` is all that a job does, and whose jobs are in one state."""

    name = "scripted"

    def __init__(self, work=lambda task: None, state="ended", most=None):
        self.work, self.state, self.most, self.tasks = work, state, most, []

    def submit(self, tasks):
        for task in tasks:
            self.work(task)
        self.tasks += tasks
        return [str(index) for index in range(len(self.tasks) - len(tasks), len(self.tasks))]

    def states(self, jobs):
        return dict.fromkeys(jobs, self.state)

    def leave(self, jobs):
        return f"{len(jobs)} stay"


def starts(planned):
    return [(one.folder / "starts").read_text().splitlines() for one in planned.trials]


def test_this_machine(planned):
    outcome = executor_of(Wanted(jobs=2), planned.out).execute(planned)
    assert not outcome.failed
    assert starts(planned) == [[""], [""]]


def test_slurm_works_through_a_plan_and_is_asked_for_what_a_trial_needs(planned, submitit):
    wanted = Wanted("slurm", jobs=3, ranks=2, hours=1.5, requests=("partition=gpu", "mem_per_cpu=2G"))
    outcome = executor_of(wanted, planned.out).execute(planned)
    assert not outcome.failed
    assert all(one.work == "nothing" for one in planned.trials)
    assert [len(found) for found in starts(planned)] == [1, 1]
    (asked,) = submitit.asked
    assert (asked["time"], asked["cpus_per_task"], asked["array_parallelism"]) == (90, 2, 3)
    assert asked["additional_parameters"] == {"requeue": True, "partition": "gpu", "mem-per-cpu": "2G"}
    assert "gpus_per_node" not in asked
    assert [note_of(one.folder) for one in planned.trials] == [None, None]


def test_ray_works_through_a_plan_and_is_asked_for_what_a_trial_needs(planned, ray):
    outcome = executor_of(Wanted("ray", jobs=1, requests=("memory=1000000",)), planned.out).execute(planned)
    assert not outcome.failed
    assert [len(found) for found in starts(planned)] == [1, 1]
    assert ray.asked == [{"num_cpus": 1, "num_gpus": 0, "max_retries": RETRIES, "memory": 1000000}] * 2
    assert [address for address, _ in ray.begun] == ["auto", None]


def test_ray_that_is_left_saves_and_goes(planned, ray):
    cluster = executor_of(Wanted("ray"), planned.out).cluster
    jobs = cluster.submit([])
    assert cluster.states(["of another run"]) == {}
    assert "continues them" in cluster.leave(jobs)
    assert ray.down


def test_gpus_are_asked_for_unless_the_requests_do(planned, submitit):
    from benchmarks.trials.executors.interface import Task

    task = Task("vae", planned.out, ("true",), 1, 4)
    for requests in ({}, {"gres": "gpu:a100:4"}):
        cluster = slurm.Slurm(planned.out, None, None, requests)
        cluster.submit([task])
    assert [asked.get("gpus_per_node") for asked in submitit.asked] == [4, None]


def test_what_slurm_refuses_is_one_line(planned, submitit):
    submitit.refused = "1\nsbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job failed"
    with pytest.raises(UserError, match="got 'invalid partition specified: gpu'; see --request"):
        executor_of(Wanted("slurm"), planned.out).execute(planned)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (("PENDING", "REQUEUED"), "queued"),
        (("RUNNING", "COMPLETING"), "running"),
        (("CANCELLED",), "cancelled"),
        (("NODE_FAIL", "TIMEOUT", "COMPLETED", "PREEMPTED", "OUT_OF_MEMORY"), "ended"),
    ],
)
def test_states_in_the_words_of_slurm(words, state, planned, submitit):
    for index, word in enumerate(words):
        (submitit.queue / str(index)).write_text(f"9_{index}|{word}\n")
    jobs = [f"9_{index}" for index in range(len(words))]
    found = slurm.Slurm(planned.out, None, None, {}).states([*jobs, "unknown"])
    assert found == dict.fromkeys(jobs, state)


def test_a_queue_that_does_not_answer_ends_no_job(planned, submitit, monkeypatch):
    cluster = slurm.Slurm(planned.out, None, None, {})
    monkeypatch.setattr(slurm, "LIST", ("false",))
    assert cluster.states(["7_0"]) == {"7_0": "running"}


def test_a_job_that_leaves_no_record_is_handed_over_again_and_is_a_failure_in_the_end(planned, watched):
    cluster = Scripted()
    outcome = Remote(cluster).execute(planned, [watched])
    assert len(cluster.tasks) == 2 * (1 + RETRIES)
    assert len(outcome.failed) == len(watched.of(Ended)) == 2
    assert "left no record" in note_of(planned.trials[0].folder).failed


def test_a_cancelled_job_is_not_handed_over_again(planned):
    cluster = Scripted(state="cancelled")
    outcome = Remote(cluster).execute(planned)
    assert len(cluster.tasks) == 2
    assert "scripted job 0 was cancelled" in outcome.failed[0]


def test_a_record_that_says_why_is_believed_and_one_from_before_is_not(planned, finish):
    first, second = planned.trials
    finish(second, status="failed", error="of an earlier run")

    def work(task):
        if task.folder == first.folder:
            finish(first, status="failed", error="out of memory")
        elif len(cluster.tasks) > 1:
            finish(second)

    cluster = Scripted(work)
    outcome = Remote(cluster).execute(planned)
    assert [line.partition(" (log")[0] for line in outcome.failed] == ["vae seed 0: out of memory"]
    assert len(cluster.tasks) == 3


def test_a_trial_that_another_run_works_on_is_left_to_it(planned, watched, finish):
    first, second = planned.trials
    held = claim(first.folder, print)

    def work(task):
        assert task.folder == second.folder
        finish(second)
        finish(first)
        held.release()

    outcome = Remote(Scripted(work)).execute(planned, [watched])
    assert not outcome.failed
    assert [event.text for event in watched.of(Said)] == [f"vae seed 0: is left to another run ({held.owner})"]


def test_a_job_that_found_somebody_at_work_is_not_counted(planned, watched, finish):
    """Its trial waits until they have gone, however often that happens."""
    first, second = planned.trials
    held = []

    def work(task):
        if task.folder == first.folder and len(cluster.tasks) < 2 * RETRIES:
            held.append(claim(first.folder, print))
        else:
            finish(first if task.folder == first.folder else second)

    class Releasing(Scripted):
        def states(self, jobs):
            if not jobs and held:
                held.pop().release()
            return super().states(jobs)

    cluster = Releasing(work)
    outcome = Remote(cluster).execute(planned, [watched])
    assert not outcome.failed
    assert len(cluster.tasks) > 1 + 1 + RETRIES


def test_jobs_of_an_earlier_run_are_followed(planned, finish):
    class Earlier(Scripted):
        def states(self, jobs):
            assert set(jobs) <= {"a", "b"}
            if self.asked:
                for one in planned.trials:
                    finish(one)
            self.asked = True
            return dict.fromkeys(jobs, "queued" if not planned.trials[0].record else "ended")

    for one, job in zip(planned.trials, "ab", strict=True):
        one.folder.mkdir(parents=True)
        JobNote("scripted", job).write(one.folder)
    cluster = Earlier()
    cluster.asked = False
    outcome = Remote(cluster).execute(planned)
    assert not outcome.failed
    assert not cluster.tasks


def test_no_more_are_handed_over_than_there_is_room_for(planned):
    cluster = Scripted(state="cancelled", most=1)
    counts = []
    cluster.submit, submit = lambda tasks: counts.append(len(tasks)) or submit(tasks), cluster.submit
    Remote(cluster).execute(planned)
    assert counts == [1, 1]


def test_how_far_a_trial_is_comes_from_its_owner(planned, watched, finish):
    first = planned.trials[0]

    class Reporting(Scripted):
        def states(self, jobs):
            if jobs and not self.held:
                self.held = [Claim(first.folder, _Unlocked())]
                self.held[0].reached("train", 3, 10)
                self.held[0]._write()
                return dict.fromkeys(jobs, "running")
            if self.held:
                self.held[0].release()
                for one in planned.trials:
                    finish(one)
            return dict.fromkeys(jobs, "ended")

    cluster = Reporting(state="running")
    cluster.held = []
    Remote(cluster).execute(planned, [watched])
    assert [event.planned.name for event in watched.of(Begun)] == ["vae seed 0"]
    assert [(event.phase, event.done, event.total) for event in watched.of(Reported)] == [("train", 3, 10)]


class _Unlocked:
    def release(self):
        pass


def test_an_interrupt_leaves_the_jobs_to_the_cluster(planned, watched):
    class Interrupted(Scripted):
        def states(self, jobs):
            if jobs:
                raise KeyboardInterrupt
            return {}

    outcome = Remote(Interrupted()).execute(planned, [watched])
    assert outcome.interrupted
    assert [event.text for event in watched.of(Said)] == ["2 stay"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--request", "partition=gpu"), "--request: expected with --executor slurm or ray"),
        (("--executor", "ray", "--hours", "3"), "--hours: expected with --executor slurm"),
        (("--executor", "slurm", "--request", "gpu"), "--request: expected KEY=VALUE"),
        (("--executor", "slurm", "--tensorboard", "tb"), "expected with --executor local, got slurm"),
        (("--executor", "slurm"), "--executor slurm: expected the package submitit"),
        (("--executor", "ray"), "--executor ray: expected the package ray"),
        (("--executor", "slrum"), "invalid choice: 'slrum'"),
    ],
)
def test_what_an_executor_cannot_do_is_one_line(words, expected, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    said = run_here("run", write_suite(tmp_path), "--out", tmp_path / "out", *words)
    assert said.returncode == 2
    assert expected in said.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_by_slurm_ends_in_the_table(tmp_path, planned, submitit, monkeypatch):
    """The suite on the command line is that of the plan, whose records the stand-in leaves."""
    suite = tmp_path / "mine.toml"
    data = tmp_path / "data.npz"
    suite.write_text(f'data = "npz:{data}"\nseeds = 2\n[likelihood]\nname = "bernoulli"\n[models.vae]\nchannels = 2\n')
    said = run_here("run", suite, "--executor", "slurm", "--out", planned.out, "--json")
    assert said.returncode == 0, said.stderr
    assert said.stdout.count('"status": "done"') == 2

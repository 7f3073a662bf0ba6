"""Slurm for real, a cluster of this one machine: a trial requeued in the middle, two executors in one folder."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
SCRIPT = Path(__file__).with_name("slurm.sh")


def why_not():
    """What is missing for a cluster here; empty where nothing is."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {', '.join(missing)} (apt-get install slurm-wlm munge)"
    if importlib.util.find_spec("submitit") is None:
        return "no submitit (pip install -e '.[slurm]')"
    return "a cluster is started by root" if os.geteuid() else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster that the environment names."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)


def jobs(states="all"):
    """Jobs that Slurm has, or those in some states."""
    command = ["squeue", "--noheader", "--array", "--format=%i", *([] if states == "all" else ["--states", states])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("ask", [("scancel", "--signal=USR2"), ("scontrol", "requeue")], ids=["notice", "requeue"])
def test_a_trial_requeued_in_the_middle_has_the_identical_record(ask, slurm, runs, whole):
    """By the signal before its time is over, which has it put back; and by Slurm at once, as in a pre-emption."""
    runs.write(runs.images)
    cut = runs.start("cut", "--executor", "slurm")
    state = runs.saved("cut")
    (job,) = jobs()
    subprocess.run([*ask, job], check=True)
    runs.wait_for(lambda: jobs("PENDING"))
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # not in two minutes
    runs.ended(cut)
    ((found, starts),) = runs.trained("cut").values()
    assert starts == 2
    assert found == whole
    assert not state.exists()
    assert not jobs()


def test_two_executors_in_one_folder_train_each_trial_once(slurm, runs):
    runs.write(images=640, seeds=4)
    both = [runs.start("shared", "--executor", "slurm"), runs.start("shared", "--jobs", "1")]
    for one in both:
        runs.ended(one)
    assert [starts for _, starts in runs.trained("shared").values()] == [1, 1, 1, 1]

"""A setting reaches the rows it is meant for, or is refused in one line."""

import copy

import pytest

from benchmarks.base.errors import UserError
from benchmarks.suites.config import build_suite, read_suite
from benchmarks.suites.overrides import apply_overrides

TABLE = {
    "data": "mnist-5k",
    "likelihood": {"name": "bernoulli"},
    "training": {"images": 640, "learning_rate": 1e-3},
    "models": {
        "ae": {"likelihood": {"name": "gaussian"}, "training": {"learning_rate": 2e-3}},
        "vae": {"training": {"learning_rate": 3e-3, "epochs": 2.0}, "objective": {"beta": 2.0}},
        "nvae": {"preset": "nvae-tiny"},
    },
}


def trials(*assignments, rows=None):
    table = copy.deepcopy(TABLE)
    apply_overrides(table, assignments, rows)
    return {trial.row: trial for trial in build_suite("own", table, rows).trials}


@pytest.mark.parametrize(
    ("assignment", "rows", "said"),
    [
        ("training.learning_rate=1e8", ["ae", "vae"], "models.ae.training.learning_rate"),
        ("training.images=9", ["vae"], "training.epochs"),
        ("models.vae.training.images=9", ["vae"], "training.epochs"),
        ("objective.beta=3.0", ["vae"], "models.vae.objective.beta"),
        ("likelihood.name='bernoulli'", ["ae"], "models.ae.likelihood"),
        ("likelihood.name='gaussian'", ["nvae"], "models.nvae.likelihood"),
        ("models.ae.latent_size=3", ["vae"], "row 'ae' is not run"),
    ],
)
def test_a_setting_that_no_row_heeds_is_an_error(assignment, rows, said):
    with pytest.raises(UserError, match=said) as caught:
        trials(assignment, rows=rows)
    assert "\n" not in str(caught.value)
    assert assignment in str(caught.value)


def test_the_quick_suite_says_so_too():
    name, table = read_suite("quick")
    with pytest.raises(UserError, match=r"changes nothing: 'ae' has models\.ae\.training\.learning_rate"):
        apply_overrides(table, ["training.learning_rate=1e8"], None)
    assert name == "quick"


def test_a_setting_that_misses_some_rows_is_said(capsys):
    found = trials("training.learning_rate=0.5", "training.images=320")
    said = capsys.readouterr().err.splitlines()
    assert [found[row].training.learning_rate for row in TABLE["models"]] == [2e-3, 3e-3, 0.5]
    assert len(said) == 2
    assert "'ae' has models.ae.training.learning_rate, 'vae' has" in said[0]
    assert said[1] == "note: --set training.images=320 leaves rows as they are: 'vae' has training.epochs"


@pytest.mark.parametrize(
    "assignment",
    ["training.epochs=1.0", "training.seconds=3.0", "models.vae.training.epochs=1.0", "evaluation.iwae_samples=3",
     "training.images=640", "seeds=2", "objective.kl_warmup=0.1", "models.vae.objective.beta=3.0"],
)  # fmt: skip
def test_what_is_heeded_is_not_remarked_on(assignment, capsys):
    rows = ["vae"] if ".vae." in assignment else ["ae", "nvae"]
    trials(assignment, rows=rows)
    assert capsys.readouterr().err == ""

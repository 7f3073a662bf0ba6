"""Wrong flags, configurations, records, files: one line that says what is wrong, exit code 2, nothing left behind."""

import json

import numpy as np
import pytest

from benchmarks.base.errors import UserError
from benchmarks.cli.parser import run_command
from benchmarks.records.record import save_run
from benchmarks.storage.weights import read_config

SUITE = """
data = "npz:data.npz"
[likelihood]
name = "bernoulli"
[training]
images = 32
batch_size = 8
[evaluation]
iwae_samples = 2
[models.vae]
channels = 4
latent_size = 3
"""
LONG = "x" * 101
SCRIPT = "<script>alert(1)</script>"


def contents(folder):
    """Every file below `folder` with its bytes, folders with none; and the names beside it."""
    below = {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    return below, sorted(folder.parent.iterdir())


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs a command in the folder of the case and holds what is true of all bad input; returns the one line."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        before = contents(tmp_path)
        code = run_command([str(word) for word in words])
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
        assert said.err.isprintable() or said.err[:-1].isprintable()
        assert contents(tmp_path) == before
        return said.err

    return call


NUMBERS = ("0", "-1", "nan", "inf", "1e400", "1000000000000", "x", "", "1" * 5000, "１")
"""The last is a digit, of another alphabet."""
WHOLE = {
    "run": ("--threads", "--jobs", "--seeds", "--latent-size"),
    "tune quick": ("--jobs",),
    "throughput nvae-tiny": ("--batch", "--threads", "--iwae"),
    "evaluate absent": ("--batch-size", "--threads"),
    "sample absent": ("--n", "--prior-statistics"),
    "encode absent": ("--n", "--batch-size", "--threads"),
    "decode absent --checkpoint absent": ("--batch-size", "--threads"),
}
REAL = {
    "run": ("--epochs",),
    "throughput nvae-tiny": ("--seconds",),
    "sample absent": ("--temperature",),
    "gpu": ("--minutes",),
}


def flags(table, values):
    return [(*verb.split(), flag, value) for verb, names in table.items() for flag in names for value in values]


@pytest.mark.parametrize("words", flags(WHOLE, NUMBERS) + flags(REAL, NUMBERS), ids=lambda words: " ".join(words)[:60])
def test_numbers_of_the_command_line(refused, words):
    assert words[-2] in refused(*words)


TEXT = {
    "run": ("--models", "--data", "--out", "--device", "--budget", "--inception-weights", "--set", "--plugin"),
    "run absent": ("--log", "--tensorboard", "--track"),
    "export absent out": ("--license",),
    "tune quick": ("--models", "--log", "--set", "--plugin"),
    "throughput nvae-tiny": ("--models", "--what", "--device", "--set", "--vs", "--vs-set", "--trace", "--csv"),
    "throughput": ("--suite", "--out", "--pythae"),
    "evaluate absent": ("--data", "--per-image", "--device", "--inception-weights", "--set"),
    "sample absent": ("--device", "--out", "--each", "--npz"),
    "encode absent": ("--data", "--split", "--out", "--device"),
    "decode absent": ("--checkpoint", "--keep", "--temperature", "--out", "--each", "--npz", "--device"),
    "gpu": ("--out", "--only"),
    "compare a b": ("--out",),
    "profile": ("--targets", "--dtypes", "--json", "--csv", "--figure", "--trace"),
    "env": ("--device",),
}


@pytest.mark.parametrize("words", flags(TEXT, ("",)), ids=" ".join)
def test_an_empty_value_is_not_taken_for_none(refused, words):
    assert words[-2] in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("run", ""),
        ("report", ""),
        ("compare", "", "b"),
        ("evaluate", ""),
        ("sample", " "),
        ("trial", ""),
        ("export", "", "out"),
    ],
)
def test_an_empty_argument_is_not_taken_for_none(refused, words):
    assert "expected a value" in refused(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--models", "vae,"], "names with a comma between"),
        (["run", "--models", ",", "--dry-run"], "names with a comma between"),
        (["run", "--budget", "seconds=inf"], "--budget seconds"),
        (["run", "--budget", "images=0.5"], "--budget images"),
        (["run", "--budget", "images=1e30"], "--budget images"),
        (["run", "--budget", "cpu_seconds="], "--budget cpu_seconds"),
        (["run", "--budget", "=3"], "seconds=N"),
        (["run", "--set", "training=3"], "training"),
        (["run", "--set", "evaluation=3"], "evaluation"),
        (["run", "--set", "evaluation=3", "--inception-weights", "absent"], "evaluation: expected a table"),
        (["run", "--set", "models=3", "--latent-size", "4"], "models: expected a table"),
        (["run", "--set", "models.vae=3", "--latent-size", "4"], "vae: expected a table"),
        (["run", "--set", "models.vae.name=[1]"], "unknown model"),
        (["run", "--set", "models.vae.preset=[1]"], "unknown preset"),
        (["run", "--set", "models.ae.likelihood.name={a=1}"], "unknown likelihood"),
        (["run", "--set", "models.vae.name={a=1}", "--latent-size", "4"], "unknown model"),
        (["run", "--set", "seeds=" + "9" * 5000], "seeds"),
        (["run", "--set", "training.clip_norm=1" + "0" * 400], "training.clip_norm: expected a finite number"),
        (["run", "--set", "title=" + "[" * 5000], "title"),
        (["run", "--set", "models.a/b.name=vae"], "a/b"),
        (["run", "--set", "models.=x"], "a.b=value"),
        (["run", "--data", "npz:"], "npz"),
        (["run", "--data", "npz:."], "npz"),
        (["run", "--data", "folder:a\x1b[2Jb"], r"\x1b"),
        (["run", "--data", "mnist-5k:x"], "mnist-5k"),
        (["run", "a\0.toml"], "expected a value"),
        (["run", "...toml"], "cannot read suite"),
        (["run", "--out", LONG * 3], "File name too long"),
        (["run", "--out", "a\0b"], "--out"),
        (["run", "--plugin", "."], "--plugin"),
        (["run", "--plugin", ".x"], "--plugin"),
        (["run", "--plugin", "absent"], "--plugin absent"),
        (["report", "--out", "x"], "unknown flag"),
        (["convert", "absent", "out"], "absent"),
        (["run", "--log", "xml"], "--log"),
        (["run", "--track", "mlflow"], "--track"),
        (["export", "absent", "out"], "absent: expected a trial's folder with record.json"),
        (["export", "quick/nvae", "out"], "or name OUT/ROW of a run"),
        (["export", "absent"], "DIR"),
        (["push", "absent", "me/vae"], "expected a folder that `export` wrote"),
        (["push", "absent"], "OWNER/NAME"),
        (["throughput", "nvae-tiny", "--batch", "1,,2"], "--batch"),
        (["throughput", "nvae-tiny", "--batch", "1000001"], "<= 1,000,000"),
        (["throughput", "nvae-tiny", "--set", "model.latent_channels=0"], "latent_channels"),
        (["throughput", "nvae-tiny", "--set", "likelihood.mixtures=99"], "mixtures"),
        (["throughput", "nvae-tiny", "--what", "train,,loop"], "--what"),
        (["sample", "absent", "--seed", "-1"], "--seed"),
        (["sample", "absent", "--seed", str(2**63)], "--seed"),
        (["gpu", "--only", "kernels,test"], "did you mean 'tests'"),
        (["trial", "absent"], "absent"),
        (["tune", "quik"], "quick"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_flags(refused, words, said):
    assert said in refused(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--out", "file"),
        ("run", "--out", "file/below"),
        ("run", "--tensorboard", "file"),
        ("run", "--tensorboard", "file/below"),
        ("export", "absent", "file"),
        ("report", "file"),
        ("compare", "a", "b", "--out", "file"),
        ("gpu", "--device", "cpu", "--out", "file"),
        ("throughput", "--suite", "speed", "--out", "file"),
        ("throughput", "nvae-tiny", "--csv", "file/below"),
        ("throughput", "nvae-tiny", "--trace", "folder"),
        ("tune", "quick", "--log", "folder"),
        ("tune", "quick", "--log", "file/below.csv"),
        ("evaluate", "absent", "--per-image", "folder"),
        ("sample", "absent", "--out", "folder"),
        ("sample", "absent", "--each", "file"),
        ("sample", "absent", "--npz", "file/below.npz"),
        ("profile", "--static", "--figure", "folder"),
        ("profile", "--static", "--csv", "file/below.csv"),
    ],
    ids=" ".join,
)
def test_a_file_in_place_of_a_folder_and_the_reverse(refused, tmp_path, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert "expected a f" in refused(*words)


BAD_PLUGINS = {"syntax": "def", "raises": "1 / 0", "exits": "import absent_too", "quits": "raise ValueError('a\\nb')"}


@pytest.mark.parametrize("name", BAD_PLUGINS)
def test_a_plugin_that_cannot_be_imported(refused, tmp_path, name):
    (tmp_path / f"bad_{name}.py").write_text(BAD_PLUGINS[name])
    assert f"--plugin bad_{name}" in refused("list", "models", "--plugin", f"bad_{name}")


def write_suite(folder, text):
    rng = np.random.default_rng(0)
    splits = {"train": 16, "validation": 8, "test": 12}
    np.savez(folder / "data.npz", **{name: rng.integers(0, 256, (n, 28, 28), np.uint8) for name, n in splits.items()})
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return folder / "mine.toml"


NAMES = ["../../evil", "/tmp/evil", "a/b", "a\\\\b", "", ".", "..", "a\\nb", "a\\u0000b", " a", "a ", "-a", ".a", "a,b"]
NAMES += ["a*", "a[b]", "a:b", "=1", "@a", "a\\u001b[2J", "a\\u200bb", LONG, "é" * 51, "<b>"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_rows_are_one_plain_component_of_a_path(refused, tmp_path, name):
    suite = write_suite(tmp_path, SUITE + f'[models."{name}"]\nname = "vae"\n')
    assert "name of a folder" in refused("run", suite, "--out", "out")


FIELDS = {
    "training": {
        "whole": ["images", "batch_size", "ema_batches", "hopeless_after"],
        "above": ["learning_rate", "epsilon", "epochs", "seconds", "cpu_seconds", "checkpoint_seconds"],
        "least": ["weight_decay", "clip_norm"],
        "share": ["warmup", "final_rate", "ema"],
    },
    "objective": {"least": ["beta", "kl_warmup", "free_nats"], "share": ["kl_constant", "kl_floor"]},
    "evaluation": {"whole": ["iwae_samples", "batch_size"], "above": ["temperature"]},
    "models.vae": {"whole": ["channels", "latent_size", "halvings"]},
}
VALUES = {
    "whole": ["0", "-1", "nan", "inf", "1000000000000", "1.5", "'1'", "true"],
    "above": ["0", "-1.0", "nan", "inf", "1e31", "[1.0]"],
    "least": ["-1e-9", "nan", "-inf", "1e31"],
    "share": ["-0.1", "1.1", "nan"],
}
BAD_FIELDS = [
    f"{table}.{field}={value}"
    for table, kinds in FIELDS.items()
    for kind, fields in kinds.items()
    for field in fields
    for value in VALUES[kind]
    if not (field == "images" and value == "1000000000000" and table == "evaluation")
]
OTHER_FIELDS = [
    *("seeds=0", "seeds=1001", "first_seed=-1", "first_seed=9223372036854775808", "threads=0", "threads=1000000000000"),
    *("evaluation.samples=-1", "evaluation.samples=1000000000000", "evaluation.images=-1", "evaluation.images=1"),
    *("evaluation.prior_batches=-1", "evaluation.extractor='absent'", "evaluation.extractor=3"),
    *("evaluation.reference_split='validation'", "training.batch_size=17", "training.validations=-1"),
    *("models.vae.pad=-1", "models.vae.pad=1000000000000", "models.vae.hidden=[0]", "models.vae.hidden=[1.5]"),
    *("models.vae.residual_blocks=-1", "models.vae.label=3", "models.vae.label=''", 'models.vae.label="a\\u0007"'),
    *('models.vae.label="a\\nb"', 'title="a\\nb"', "title=3", "data=3", 'data="npz:a\\u0000b"', "title=2020-01-01"),
    *("likelihood={name='gaussian',scale=0}", "likelihood={name='gaussian',scale=nan}"),
    *("likelihood={name='gaussian',scale='taught'}", "likelihood={name='logistic-mixture',mixtures=0}"),
    *("likelihood={name='logistic-mixture',bits=9}", "likelihood={name='soft-clamped-normal',bits=0}"),
    *("models.vae={name='nvae',groups_fine_to_coarse=[]}", "models.vae={name='nvae',groups_fine_to_coarse=[0]}"),
    *("models.vae={name='nvae',norm_penalty=nan}", "models.vae={name='nvae',norm_penalty_start=0}"),
    *("models.vae={name='nvae',batch_norm_momentum=2}", "models.vae={name='nvae',residual_gain=inf}"),
    *("models.vae={name='nvae',arch=''}", "models.vae={name='nvae',flows=-1}", "models.vae={name=''}"),
    *("models.vae={name='nvae',channel_cap=0}", "models.vae={name='nvae',preprocess_blocks=17}"),
]


@pytest.mark.parametrize("assignment", BAD_FIELDS + OTHER_FIELDS)
def test_values_of_a_suite(refused, tmp_path, assignment):
    """Each is refused in the plan: nothing is trained."""
    path = assignment.partition("=")[0].split(".")
    line = refused("run", write_suite(tmp_path, SUITE), "--out", "out", "--device", "cpu", "--set", assignment)
    assert path[-1] in line


BROKEN_SUITES = {
    "no table": "",
    "no models": "title = 'x'",
    "a list of models": "models = [1]",
    "a model that is a number": "[likelihood]\nname='bernoulli'\n[models]\nvae = 3",
    "half a file": "[models",
    "brackets": "title = " + "[" * 5000,
    "digits": "seeds = " + "9" * 5000,
    "twice": "title = 'a'\ntitle = 'b'",
    "a likelihood that is a list": "likelihood = []\n[models.vae]",
    "training that is a list": SUITE.replace("[training]", "[[training]]"),
    "unknown table": SUITE + "[trainig]\nimages = 3",
}


@pytest.mark.parametrize("case", BROKEN_SUITES)
@pytest.mark.parametrize("verb", ["run", "tune", "throughput"])
def test_broken_suites(refused, tmp_path, case, verb):
    assert "mine" in refused(verb, write_suite(tmp_path, BROKEN_SUITES[case]))


def test_a_suite_that_is_not_text(refused, tmp_path):
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    assert "expected TOML" in refused("run", "mine.toml")


SPEED = """
title = "Mine"
[[case]]
label = "a"
target = "nvae-tiny"
aims = [{what = "train", goal = 1.0, stretch = 2.0}]
"""
BAD_SPEED = [
    *("batches = [0]", "batches = []", "threads = [1000000000000]", "draws = 0", "rounds = -1", "steps = 1.5"),
    *("set = 3", "[[reference]]\nlabel='a'\nbatch=1\nthreads=1\nwhat='train'\nrate=0\nsource=''"),
    *("[[reference]]", "[other]", "pythae = 3"),
]


@pytest.mark.parametrize("text", BAD_SPEED)
def test_speed_suites(refused, tmp_path, text):
    (tmp_path / "mine.toml").write_text(SPEED + text)
    assert "mine" in refused("throughput", "--suite", "mine.toml", "--device", "cpu")


@pytest.mark.parametrize("line", ["mine,vae,0,32,8,adamw,fast,0.1", "mine,vae", '"'])
def test_logs_of_tune(refused, tmp_path, line):
    from benchmarks.trials.tune import COLUMNS

    (tmp_path / "log.csv").write_text(",".join(COLUMNS) + f"\n{line}\n")
    assert "log.csv" in refused("tune", write_suite(tmp_path, SUITE), "--log", "log.csv")


STORED = [
    *(("seed", -1), ("seed", "0"), ("threads", 0), ("row", "../x"), ("row", ""), ("row", 3), ("label", "a\nb")),
    *(("data", "a\0b"), ("data", None), ("suite", 3), ("model", []), ("model", "absent"), ("likelihood", {})),
    *(("likelihood_spec", 3), ("training", None), ("training", {"images": 0}), ("objective", {"beta": -1})),
    *(("evaluation", {"temperature": 0}), ("model_config", {"channels": 0}), ("extra", 1), ("device", 3)),
]


@pytest.fixture(scope="module")
def stored():
    """A stored configuration."""
    from benchmarks.suites.config import build_suite, read_suite, to_dict

    return to_dict(build_suite(*read_suite("quick")).trials[1])


@pytest.mark.parametrize(("key", "value"), STORED)
def test_stored_configurations(tmp_path, stored, key, value):
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**stored, key: value}))
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert key in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{", "NaN", "[" * 100_000, "[" * 900 + "]" * 900, "9" * 5000, '{"row": "\\ud800"}', ""]
)
@pytest.mark.parametrize("name", ["config.json", "record.json", "run.json"])
def test_files_that_hold_something_else(refused, tmp_path, name, text):
    folder = tmp_path / "trial"
    folder.mkdir()
    place = tmp_path if name == "run.json" else folder
    (place / name).write_text(text)
    if name != "config.json":
        assert name in refused("report", ".")
        return
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_config(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../..", "/tmp", "", ".", "a/../..", "a\nb", 3, None, ["a"], "a\\b"])
@pytest.mark.parametrize("verb", [("report", "."), ("compare", "vae", "nvae", "--out", ".")])
def test_a_run_names_folders_beside_it_only(refused, tmp_path, name, verb):
    (tmp_path / "record.json").write_text("{}")
    save_run(tmp_path, [name])
    assert "run.json" in refused(*verb)


RECORDS = [
    *(("schema_version", 2), ("schema_version", "1"), ("schema_version", None), ("seed", "0"), ("seed", 1.5)),
    *(("label", 3), ("label", None), ("row", []), ("status", "fine"), ("status", None), ("parameters", "many")),
    *(("parameters", float("nan")), ("parameters", 10**400), ("training_seconds", float("inf"))),
    *(("training_seconds", 1e308), ("training_seconds", [1.0]), ("config", []), ("config", {"training": 3})),
    *(("config", {"objective": []}), ("config", {"objective": {"beta": "one"}}), ("config", {"likelihood_spec": 3})),
    *(("environment", None), ("environment", {}), ("latent_groups", 3), ("latent_groups", [{}]), ("notes", "text")),
    *(("notes", [1]), ("measurements", {}), ("measurements", [3]), ("measurements", None), ("curves", [[]])),
    *(("error", 3), ("data_hash", 3), ("skipped_steps", "x"), ("images_seen", True), ("future", 1)),
]
MEASUREMENTS = [
    *(("value", float("nan")), ("value", 1e308), ("value", "high"), ("value", [1.0]), ("value", True)),
    *(("low", float("-inf")), ("low", "x"), ("high", -1e101), ("unit", 3), ("unit", None), ("metric", 3)),
    *(("higher_is_better", "yes"), ("n", 1.5), ("n", "all"), ("spread_kind", "wide"), ("note", None)),
    *(("details", []), ("details", {"load": "much"}), ("details", {"n_reference": "all"}), ("details", {"a": 1e308})),
]
CURVES = [
    *(("values", [1.0]), ("values", "x"), ("values", [1.0, "x"]), ("values", [1.0, 1e308]), ("images", [None, 1.0])),
    *(("images", []), ("name", None), ("unit", 3), ("images", [1.0, float("nan")]), ("other", 1)),
]


def write_record(folder, make_record, change):
    from benchmarks.records.record import Curve, to_json

    raw = json.loads(to_json(make_record("vae", curves=[Curve("loss", "nats/image", [1.0, 2.0], [3.0, 4.0])])))
    change(raw)
    (folder / "trial").mkdir()
    (folder / "trial" / "record.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [(None, *one) for one in RECORDS]
    + [("measurements", *one) for one in MEASUREMENTS]
    + [("curves", *one) for one in CURVES],
    ids=lambda value: str(value)[:30],
)
def test_records(refused, tmp_path, make_record, part, key, value):
    write_record(tmp_path, make_record, lambda raw: (raw if part is None else raw[part][0]).update({key: value}))
    line = refused("report", ".")
    assert "trial/record.json" in line
    assert "remove or repair that file" in line


SQUARES = np.zeros((4, 8, 8, 1), np.uint8)
ARCHIVES = {
    "no archive": b"PK",
    "empty": b"",
    "half": None,
    "objects": {"originals": np.array([{}], object), "reconstructions": SQUARES},
    "no reconstructions": {"originals": SQUARES},
    "nothing": {},
    "floats": {"originals": SQUARES.astype(np.float32), "reconstructions": SQUARES},
    "two channels": {
        "originals": np.zeros((4, 8, 8, 2), np.uint8),
        "reconstructions": np.zeros((4, 8, 8, 2), np.uint8),
    },
    "no images": {"originals": SQUARES[:0], "reconstructions": SQUARES},
    "a number": {"originals": np.uint8(3), "reconstructions": SQUARES},
    "two sizes": {"originals": SQUARES, "reconstructions": np.zeros((4, 9, 8, 1), np.uint8)},
    "samples of another size": {
        "originals": SQUARES,
        "reconstructions": SQUARES,
        "samples": np.zeros((4, 4), np.uint8),
    },
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_saved_images(refused, tmp_path, make_record, case):
    write_record(tmp_path, make_record, lambda raw: None)
    path, found = tmp_path / "trial" / "images.npz", ARCHIVES[case]
    if isinstance(found, dict):
        np.savez(path, **found)
    else:
        np.savez(path, originals=SQUARES)
        path.write_bytes(path.read_bytes()[:100] if found is None else found)
    assert "images.npz" in refused("report", ".")


GALLERIES = {
    "no archive": b"nothing",
    "half a block": {"at_temperature": np.zeros((4, 8, 8, 8, 1), np.uint8)},
    "floats": {"interpolations": np.zeros((4, 8, 8, 8, 1))},
    "too few axes": {"interpolations": np.zeros((4, 8, 8, 1), np.uint8)},
    "no pictures": {"interpolations": np.zeros((0, 8, 8, 8, 1), np.uint8)},
    "two channels": {"interpolations": np.zeros((4, 8, 8, 8, 2), np.uint8)},
    "too few temperatures": {
        "temperatures": np.ones(3),
        "at_temperature": np.zeros((4, 8, 8, 8, 1), np.uint8),
    },
    "temperatures that are none": {
        "temperatures": np.array([1.0, np.nan]),
        "at_temperature": np.zeros((2, 8, 8, 8, 1), np.uint8),
    },
    "errors of text": {
        "samples": SQUARES,
        "neighbours": SQUARES,
        "sample_errors": np.array(["a"] * 4),
        "test_errors": np.ones(4),
    },
    "fewer errors than samples": {
        "samples": SQUARES,
        "neighbours": SQUARES,
        "sample_errors": np.ones(3),
        "test_errors": np.ones(4),
    },
    "fewer neighbours than samples": {
        "samples": SQUARES,
        "neighbours": SQUARES[:2],
        "sample_errors": np.ones(4),
        "test_errors": np.ones(4),
    },
}


@pytest.mark.parametrize("case", GALLERIES)
def test_saved_galleries(refused, tmp_path, make_record, case):
    write_record(tmp_path, make_record, lambda raw: None)
    path, found = tmp_path / "trial" / "gallery.npz", GALLERIES[case]
    if isinstance(found, dict):
        np.savez(path, **found)
    else:
        path.write_bytes(found)
    assert "gallery.npz" in refused("report", ".")


@pytest.mark.parametrize("name", ["throughput.json", "profile.json"])
@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '[{"part": "static"}, {"part": "timed", "metric": "x_share"}]', "[" * 9999]
)
def test_profiles_in_a_run(refused, tmp_path, make_record, name, text):
    write_record(tmp_path, make_record, lambda raw: None)
    (tmp_path / name).write_text(text)
    assert name in refused("report", ".")


@pytest.mark.parametrize("values", [np.array([{}], object), np.array(["a"]), np.zeros((2, 2)), np.array([np.nan, 1.0])])
def test_values_of_single_images(refused, tmp_path, make_record, values):
    write_record(tmp_path, make_record, lambda raw: None)
    np.savez(tmp_path / "trial" / "per_image.npz", elbo=values)
    assert "per_image.npz" in refused("compare", "vae", "vae", "--out", ".")

"""Parses the command line and calls the verbs. No logic of its own beyond that."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.base import output
from benchmarks.base.checked import arguments, bounds
from benchmarks.base.checked.arguments import file, folder, names, part, real, several, whole
from benchmarks.base.errors import INTERRUPTED, UserError, unknown
from benchmarks.base.plugins import import_plugin
from benchmarks.cli import dispatch

COMMAND = "vaebench"
"""The console command; `python -m benchmarks` is the same."""
VARIATIONS = ("reconstruct", "interpolate", "traverse")
READING = ("throughput", "evaluate", "sample", "encode", "decode", "convert", *VARIATIONS)
"""Verbs that take checkpoints of published codes."""
PLUGGABLE = ("run", "trial", "tune", "report", "compare", "merge", "export", "list", *READING)
CHECKPOINT = (
    "trial or exported folder, OUT/ROW of the run OUT, weights file, or checkpoint of the original NVAE or VDVAE code"
)
PLUGIN = "module of your own that adds models, data sets, extractors or metrics"
COMPARED = (
    "row of --out, OUT/ROW of the run OUT, a run's folder or suite (row by row), a trial's folder, any of these as "
    "COMMIT:PATH, or NAME=ROW to name it in conditions; the first is the base"
)
EXECUTORS = ("local", "slurm", "ray")
HPARAMS = "JSON file of the settings, where a checkpoint of an original code holds weights alone and fits no preset"
UNWRITABLE = (
    *(errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)

OUT_OF_MEMORY = ("out of memory", "allocate memory")
"""What torch says of a GPU, and of the machine."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of printing usage and exiting."""
        raise UserError(f"{message}; see '{self.prog} --help'")

    def add_argument(self, *flags: str, **settings: Any) -> argparse.Action:
        """As in argparse; a value without a type of its own is text of which there is some."""
        if settings.get("action", "store") in ("store", "append"):
            settings.setdefault("type", arguments.text)
        return super().add_argument(*flags, **settings)

    def parse_strictly(self, words: Sequence[str]) -> argparse.Namespace:
        """Parsed arguments; an unknown flag is an error with the nearest known one."""
        known, rest = self.parse_known_args(words)
        if rest:
            flags = [flag for action in known.parser._actions for flag in action.option_strings]
            bad = rest[0].partition("=")[0]
            if bad.startswith("-"):
                raise unknown("flag", bad, flags)
            raise UserError(f"unexpected argument '{bad}'; see '{known.parser.prog} --help'")
        return known


def build_parser() -> Parser:
    """The parser of all verbs."""
    called = COMMAND if Path(sys.argv[0]).stem == COMMAND else "python -m benchmarks"
    parser = Parser(prog=called, description="Benchmarks of variational autoencoders.", allow_abbrev=False)
    parser.set_defaults(parser=parser)
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(parser=sub)
        return sub

    _add_run(verb("run", "train and score the models of a suite, print the table"))
    _add_tune(verb("tune", "try learning rates for every row of a suite, scored on the validation split"))
    _add_compare(verb("compare", "differences of models, runs or records: intervals, a verdict, conditions for CI"))
    _add_throughput(verb("throughput", "images per second, memory and breakdown of a model, alone or beside another"))
    report = verb("report", "rebuild table and figures from the records of a run")
    report.add_argument("out", nargs="?", type=folder, default="results/local/quick", help="folder of the run")
    status = verb("status", "how far the trials of a run are, whoever works on them: done, running, waiting, failed")
    status.add_argument("out", nargs="?", type=folder, default="results/local/quick", help="folder of the run")
    status.add_argument("--json", action="store_true", help="print JSON")
    merge = verb("merge", "join the records of several machines into one run; refuses what cannot be compared")
    merge.add_argument("runs", nargs="+", type=folder, metavar="DIR", help="folder of a run")
    merge.add_argument("--out", type=folder, required=True, help="a new or empty folder")
    merge.add_argument("--allow", type=names, help="comma-separated: torch, suite_version, commit, which may differ")
    _add_evaluate(verb("evaluate", "score a trained model on a test split"))
    _add_sample(verb("sample", "draw images from a trained model into a grid, a folder or an archive"))
    _add_encode(verb("encode", "write the latents of images to a file; say how the latent groups are used"))
    _add_decode(verb("decode", "make images of a file of latents, all of its groups or the first ones"))
    _add_variations(verb("reconstruct", "images beside their reconstructions, latent groups redrawn where asked for"))
    _add_variations(verb("interpolate", "images of latents on the line from one image to the next"))
    _add_variations(verb("traverse", "images of one latent unit after the other, moved across its prior"))
    convert = verb("convert", "write a checkpoint (of the original NVAE or VDVAE code, say) in this suite's format")
    convert.add_argument("checkpoint", help=CHECKPOINT)
    convert.add_argument("out", help="a .safetensors file, or a folder to make")
    _add_export(verb("export", "write a trained trial as a folder for a model hub: weights, card, pictures; offline"))
    _add_push(verb("push", "upload a folder that `export` wrote to the Hugging Face hub"))
    _add_profile(verb("profile", "what the compiler made of the kernels, and how fast they are here"))
    _add_gpu(verb("gpu", "on a machine with a GPU for a short while: check, measure and write down everything"))
    listing = verb("list", "what there is: models, datasets, metrics, suites")
    listing.add_argument("what", choices=["models", "datasets", "metrics", "suites"])
    listing.add_argument("--memory", action="store_true", help="models: estimate what training presets takes (minutes)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    env = verb("env", "the environment a run would record")
    env.add_argument("--device", default="auto", help="auto, cpu or cuda")
    trial = subparsers.add_parser("trial")  # internal: one trial in its own process
    trial.set_defaults(parser=trial)
    trial.add_argument("folder")
    trial.add_argument("--with-parent", action="store_true", help="end where standard input does")
    trial.add_argument("--data-hash", help="of the images that the run began with")
    trial.add_argument("--ranks", type=whole(bounds.RANKS), default=1, help="processes that train it together")
    trial.add_argument("--rank", type=whole(bounds.or_zero(bounds.RANKS)), default=0, help="which of them this is")
    trial.add_argument("--port", type=whole(bounds.PORT), help="where the first of them listens")
    trial.add_argument("--alone", action="store_true", help="claim it, see it to its end, time it: a cluster's job")
    trial.add_argument("--gallery", action="store_true", help="make the page's pictures of a trial that is through")
    for name, sub in subparsers.choices.items():
        if name in READING:
            sub.add_argument("--hparams", metavar="FILE.json", help=HPARAMS)
        if name in PLUGGABLE:
            sub.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=PLUGIN)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("suite", nargs="?", default="quick", help="a suite's name or a TOML file (default: quick)")
    run.add_argument("--models", type=names, help="comma-separated rows to run")
    run.add_argument("--data", help="another data set, or several with commas between: a run each, in OUT/NAME")
    run.add_argument("--latent-size", type=whole(bounds.LATENT_SIZE), help="latent size of every model that has one")
    run.add_argument("--epochs", type=real(bounds.EPOCHS), help="training length in epochs")
    run.add_argument(
        "--budget",
        help="equal training for every model: seconds=N by the clock, cpu_seconds=N of the processor, or images=N",
    )
    run.add_argument("--seeds", type=whole(bounds.SEEDS), help="number of seeds")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda")
    run.add_argument("--threads", type=whole(bounds.THREADS), help="threads of each trial")
    run.add_argument("--jobs", type=whole(bounds.JOBS), help="trials at a time (default: cores / threads; 1 on a GPU)")
    run.add_argument(
        "--ranks", type=whole(bounds.RANKS), help="processes that train one model together (default: torchrun's, or 1)"
    )
    run.add_argument("--executor", choices=EXECUTORS, default="local", help="where trials run (default: local)")
    run.add_argument("--hours", type=real(bounds.HOURS), help="slurm: wall-clock limit of a trial's job (default: 24)")
    run.add_argument(
        "--request",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a trial's job asks of slurm or ray, in their words: partition=gpu, num_gpus=0.5",
    )
    run.add_argument("--out", type=folder, help="folder of the run (default: results/local/SUITE)")
    run.add_argument("--inception-weights", metavar="PATH", help="weights for Inception FID")
    run.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a key of the suite")
    run.add_argument(
        "--log",
        choices=["text", "json"],
        default="text",
        help="progress on stderr: for people, or a JSON object a line",
    )
    run.add_argument("--tensorboard", type=folder, metavar="DIR", help="track the trials in event files below DIR")
    run.add_argument("--track", choices=["wandb", "trackio"], help="track the trials with this package")
    run.add_argument("--dry-run", action="store_true", help="print the plan with an estimate of time")
    run.add_argument("--json", action="store_true", help="print records (or the plan) as JSON in place of the table")


def _add_tune(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("suite", help="a suite's name or a TOML file")
    tune.add_argument("--models", type=names, help="comma-separated rows")
    tune.add_argument(
        "--log", type=file, help="CSV file, continued where it stopped (default: results/tuning/SUITE.csv)"
    )
    tune.add_argument("--jobs", type=whole(bounds.JOBS), default=1, help="trials at a time (default: 1)")
    tune.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a key of the suite")


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("trial", help="trial folder with its record, that record, or OUT/ROW of the run OUT")
    export.add_argument("out", type=folder, metavar="DIR", help="a new or empty folder")
    export.add_argument("--license", default="unknown", metavar="ID", help="of the weights, as the hub names it: mit")


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("folder", metavar="DIR", help="a folder that `export` wrote")
    push.add_argument("repo", metavar="OWNER/NAME", help="repository, made where it is missing")
    push.add_argument("--private", action="store_true", help="make it private")


def _add_profile(profile: argparse.ArgumentParser) -> None:
    profile.add_argument(
        "--targets", type=names, default="sm_80,sm_90,sm_100,gfx942", help="comma-separated GPUs to compile for"
    )
    profile.add_argument("--dtypes", type=names, default="fp32,bf16", help="comma-separated: fp32, bf16, fp16")
    profile.add_argument("--static", action="store_true", help="read the compiled code only, time nothing")
    profile.add_argument(
        "--json", nargs="?", type=file, const="-", metavar="FILE", help="rows as JSON (no FILE: to stdout)"
    )
    profile.add_argument("--csv", type=file, metavar="FILE", help="rows as CSV")
    profile.add_argument(
        "--figure", type=file, metavar="FILE", default="results/local/roofline.png", help="roofline, PNG or SVG"
    )
    profile.add_argument("--trace", type=file, metavar="FILE", help="Chrome trace of one step of every timed operation")


def _add_gpu(gpu: argparse.ArgumentParser) -> None:
    gpu.add_argument("--minutes", type=real(bounds.SECONDS), default=9.0, help="time for all steps (default: 9)")
    gpu.add_argument("--out", type=folder, metavar="DIR", help="folder of the findings (default: results/gpu/DEVICE)")
    gpu.add_argument(
        "--only", metavar="STEPS", help="comma-separated: environment, kernels, tests, parity, timing, ..."
    )
    gpu.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run on tiny shapes")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("rows", nargs="+", metavar="ROW", help=COMPARED)
    compare.add_argument("--out", type=folder, default="results/local/quick", help="run of rows that are named alone")
    compare.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit code 1 where it holds: 'nvae.fid > 1.05 * base.fid'; base is the first row",
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_const", dest="form", const="markdown", help="for a page")
    form.add_argument("--latex", action="store_const", dest="form", const="latex", help="tables for booktabs")
    form.add_argument("--json", action="store_true", help="print JSON")


def _add_throughput(throughput: argparse.ArgumentParser) -> None:
    add = throughput.add_argument
    add("target", nargs="*", help=f"{CHECKPOINT}; or a suite (name or TOML file), or a preset of `list models`")
    add(
        "--models",
        type=names,
        help="comma-separated rows of a suite, labels of the speed suite, or curves of one of growth",
    )
    add(
        "--what",
        type=names,
        help="comma-separated: train, loop, encode, reconstruct, sample, iwae, memory, breakdown, start",
    )
    add(
        "--batch",
        type=several(whole(bounds.BATCH)),
        help="images per call, several separated by commas (default: as trained)",
    )
    add(
        "--threads",
        type=several(whole(bounds.THREADS)),
        help="threads, several separated by commas (default: as trained)",
    )
    add(
        "--ranks",
        type=several(whole(bounds.RANKS)),
        help="train by so many processes together, at one batch of all (several between commas), and count what they "
        "send; with --what network nothing is timed",
    )
    add("--link", type=real(bounds.SECONDS), metavar="GB/S", help="ranks: time of a ring all-reduce over such links")
    add("--device", help="auto, cpu or cuda (default: as trained)")
    add("--precision", choices=["float32", "bfloat16"], help="of the training step (default: as trained)")
    add("--compile", choices=["off", "on", "graph"], help="torch.compile, or CUDA graphs (default: as trained)")
    add("--iwae", type=whole(bounds.DRAWS), metavar="K", help="time the importance-weighted bound of K draws as well")
    add("--seconds", type=real(bounds.SECONDS), help="time for each verb and variant (default: 0.8, or the suite's)")
    add("--set", action="append", default=[], metavar="A.B=C", help="override model.KEY, training.KEY, objective.KEY")
    add(
        "--vs",
        metavar="baseline|product|TARGET",
        help="time it in turns with the plain implementation, a matrix product, or another model",
    )
    add(
        "--vs-set",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override there; alone: against the same model under it",
    )
    add(
        "--instructions",
        choices=["native", "avx2", "avx512"],
        default="native",
        help="limit our kernels and torch to a vector instruction set that this processor has (default: native)",
    )
    add(
        "--neighbours",
        type=whole(bounds.JOBS),
        metavar="N",
        help="the rate beside N other processes that keep a core busy each, and what it keeps of the rate alone",
    )
    add("--trace", type=file, metavar="FILE", help="Chrome trace of one training step")
    add("--csv", type=file, metavar="FILE", help="rows as CSV")
    add("--json", action="store_true", help="print JSON")
    add(
        "--suite",
        metavar="speed|operations|growth|FILE",
        help="the comparisons of a speed suite, or the curves of one of growth, each in its own process; or single "
        "operations of models (--models PRESET,SUITE/ROW): C against plain PyTorch and, with --compile on, compiled",
    )
    add("--most", type=whole(bounds.BATCHES), metavar="N", help="operations: shapes of each kind (default: 3)")
    add("--pythae", metavar="PYTHON", help="suite: interpreter of an environment with pythae")
    add("--no-compiler", action="store_true", help="suite: as on a machine without a C compiler")
    add("--out", type=folder, help="suite: folder of the results (default: results/local/SUITE)")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("checkpoint", nargs="?", help=f"{CHECKPOINT}; may be left out beside --samples and --data")
    evaluate.add_argument(
        "--samples", metavar="DIR", help="score the images of this folder (PNG, JPEG, ...) or .npz file as samples"
    )
    evaluate.add_argument(
        "--data", help="data set (default: the one it was trained on), or npz:FILE for the likelihood of all its images"
    )
    evaluate.add_argument("--posterior-mean", action="store_true", help="likelihood with every z at its posterior mean")
    evaluate.add_argument(
        "--original-rules", action="store_true", help="likelihood as the model's original code has it"
    )
    evaluate.add_argument("--per-image", type=file, metavar="OUT.json", help="write the likelihood of every image")
    evaluate.add_argument("--batch-size", type=whole(bounds.BATCH), help="images per call (default: as configured)")
    evaluate.add_argument("--device", default="auto", help="auto, cpu or cuda")
    evaluate.add_argument("--threads", type=whole(bounds.THREADS), help="threads (default: as trained)")
    evaluate.add_argument("--inception-weights", metavar="PATH", help="weights for Inception FID")
    evaluate.add_argument("--set", action="append", default=[], metavar="A=C", help="override a key of [evaluation]")
    evaluate.add_argument("--json", action="store_true", help="print JSON")


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("checkpoint", help=CHECKPOINT)
    sample.add_argument("--n", type=whole(bounds.SAMPLES), default=64, help="number of images")
    sample.add_argument("--temperature", type=real(bounds.TEMPERATURE), default=1.0, help="factor on the prior's scale")
    sample.add_argument("--seed", type=whole(bounds.SEED), default=0, help="seed of the draw")
    sample.add_argument("--draw", action="store_true", help="draw pixels in place of showing the likelihood's mean")
    sample.add_argument(
        "--prior-statistics",
        type=whole(bounds.BATCHES),
        metavar="N",
        help="batch-norm statistics of N batches of images from the prior, 10 say (default: those of training)",
    )
    sample.add_argument(
        "--shard",
        type=part(bounds.SHARDS),
        metavar="i/N",
        help="the i-th of N parts of the n images, i from 1 to N: together they are those of one call",
    )
    sample.add_argument("--device", default="auto", help="auto, cpu or cuda")
    _add_pictures(sample, "samples.png")


def _add_encode(encode: argparse.ArgumentParser) -> None:
    encode.add_argument("checkpoint", help=CHECKPOINT)
    encode.add_argument(
        "--data", help="data set, npz:FILE, folder:, tar: or parquet:PATH (default: the one it was trained on)"
    )
    encode.add_argument(
        "--split",
        choices=["train", "validation", "test"],
        help="default: test; of npz:FILE all images of its one array",
    )
    encode.add_argument("--n", type=whole(bounds.SAMPLES), help="the first N images (default: all)")
    encode.add_argument("--posterior-mean", action="store_true", help="every z at its posterior mean, not drawn")
    encode.add_argument("--seed", type=whole(bounds.SEED), default=0, help="seed of the draws")
    encode.add_argument(
        "--out", type=file, metavar="FILE", default="latents.safetensors", help="default: latents.safetensors"
    )
    encode.add_argument("--stats", action="store_true", help="print rate, active units and dead channels of the groups")
    encode.add_argument("--prune", action="store_true", help="drop dead channels, those without an active unit")
    encode.add_argument("--json", action="store_true", help="print the statistics as JSON")
    encode.add_argument("--batch-size", type=whole(bounds.BATCH), help="images per call (default: as configured)")
    encode.add_argument("--device", default="auto", help="auto, cpu or cuda")
    encode.add_argument("--threads", type=whole(bounds.THREADS), help="threads (default: as trained)")


def _add_decode(decode: argparse.ArgumentParser) -> None:
    decode.add_argument("latents", help="a file that `encode` wrote")
    decode.add_argument("--checkpoint", required=True, help=CHECKPOINT)
    decode.add_argument(
        "--keep", type=whole(bounds.GROUPS), metavar="K", help="take the first K groups, draw the others (default: all)"
    )
    decode.add_argument(
        "--temperature", metavar="T[,T...]", help="factor on the prior's scale of groups that are drawn, or one a group"
    )
    decode.add_argument("--seed", type=whole(bounds.SEED), help="seed of the groups that are drawn (default: 0)")
    decode.add_argument("--batch-size", type=whole(bounds.BATCH), help="images per call (default: as configured)")
    decode.add_argument("--device", default="auto", help="auto, cpu or cuda")
    decode.add_argument("--threads", type=whole(bounds.THREADS), help="threads (default: as trained)")
    _add_pictures(decode, "decoded.png")


def _add_variations(verb: argparse.ArgumentParser) -> None:
    name = verb.prog.rpartition(" ")[2]
    verb.add_argument("checkpoint", help=CHECKPOINT)
    verb.add_argument("images", nargs="*", metavar="IMAGE", help="number in the split, or an image file")
    verb.add_argument("--data", help="data set, npz:FILE, folder:PATH or tar:PATH of numbers (default: as trained)")
    verb.add_argument("--split", choices=["train", "validation", "test"], help="default: test")
    if name == "traverse":
        verb.add_argument(
            "--group", type=whole(bounds.GROUPS), default=1, help="latent group (default: 1, the coarsest)"
        )
        verb.add_argument("--units", type=whole(bounds.SAMPLES), default=8, help="those of highest rate (default: 8)")
        verb.add_argument(
            "--range", type=real(bounds.TEMPERATURE), default=3.0, help="in the prior's scales (default: 3)"
        )
    else:
        verb.add_argument(
            "--redraw", action="append", default=[], metavar="GROUPS", help="draw these from the prior: 1, 3-5 or 1,4"
        )
    if name == "reconstruct":
        verb.add_argument("--draws", type=whole(bounds.SAMPLES), default=4, help="of each --redraw (default: 4)")
    else:
        verb.add_argument("--steps", type=whole(bounds.SAMPLES), default=9, help="images of a row (default: 9)")
    verb.add_argument("--temperature", type=real(bounds.TEMPERATURE), help="factor on the prior's scale (default: 1)")
    verb.add_argument("--seed", type=whole(bounds.SEED), default=0, help="seed of what is drawn")
    verb.add_argument("--device", default="auto", help="auto, cpu or cuda")
    verb.add_argument("--threads", type=whole(bounds.THREADS), help="threads (default: as trained)")
    _add_pictures(verb, f"{name}.png")


def _add_pictures(verb: argparse.ArgumentParser, grid: str) -> None:
    verb.add_argument("--out", type=file, metavar="FILE", help=f"grid; the suffix is the format (default: {grid})")
    verb.add_argument("--each", type=folder, metavar="DIR", help="a PNG an image, into a new or empty folder")
    verb.add_argument("--npz", type=file, metavar="FILE", help="archive of `images` (n, H, W, C) uint8")


def run_command(words: Sequence[str]) -> int:
    """Parse `words`, run the verb, turn errors into exit codes; returns the code."""
    output.allow_any_encoding()
    try:
        code = _called(words)
        output.flush()
        return code
    except BrokenPipeError:
        output.discard()
        return output.PIPE_CLOSED
    except UserError as error:
        return _said(f"error: {error}", 2)
    except OSError as error:
        output.discard()
        return _said(f"error: {_of_the_system(error)}", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in OUT_OF_MEMORY):
            raise
        return _said(f"error: out of memory: {' '.join(str(error).split())[:200]}; ask for less at a time", 2)
    except KeyboardInterrupt:
        return _said("interrupted", INTERRUPTED)


def _called(words: Sequence[str]) -> int:
    """The exit code of the verb that `words` ask for; 0 after --help."""
    try:
        options = build_parser().parse_strictly(words)
        options.words = words
    except SystemExit:  # argparse has printed the help
        return 0
    for module in getattr(options, "plugin", ()):
        import_plugin(module)
    return dispatch.call(options.verb, options)


def _said(line: str, code: int) -> int:
    """Print a line on stderr, whose reader may have gone away too; returns the code."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    return code


def _of_the_system(error: OSError) -> str:
    """What the operating system refused."""
    reason = " ".join(str(error.strerror or error).split())
    where = f" {error.filename}" if error.filename else ""
    todo = "free space or choose another place" if error.errno in UNWRITABLE else "see that it is there and try again"
    return f"cannot read or write{where}: {reason}; {todo}"

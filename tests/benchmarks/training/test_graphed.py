"""Steps replayed as CUDA graphs are the eager steps; without a GPU they run eagerly, which the record says."""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.data import DataSet
from benchmarks.speed.target import preset_target
from benchmarks.storage import weights
from benchmarks.storage.weights import build_model
from benchmarks.suites.config import build_suite, read_suite, set_path
from benchmarks.training.graphed import LossWeights, StepGraphs
from benchmarks.training.guard import StepGuard
from benchmarks.training.loop import train
from benchmarks.training.state import build_optimizer
from benchmarks.training.step import loss_of
from kernels.cpu.backend import CPU
from kernels.gpu import operators
from kernels.reference.backend import REFERENCE
from models.output import Draw, ImageShape

META = torch.device("meta")
STEPS, BATCH = 12, 16
ALIKE = 0.15
LOSS = 1e-3  # relative: sums in another order, grown over the steps
SMALL = [f"training.images={STEPS * BATCH}", f"training.batch_size={BATCH}", "training.validations=0"]


@pytest.fixture
def data():
    gen = torch.Generator().manual_seed(0)
    splits = [torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=gen) for n in (200, 40, 40)]
    return DataSet("noise", ImageShape(1, 28, 28), *splits, "hash", None, "random pixels")


def trained(row, data, folder, device, *assignments):
    name, table = read_suite("quick")
    for assignment in [*SMALL, *assignments]:
        set_path(table, assignment)
    trial = build_suite(name, table, [row]).trials[0]
    model = build_model(trial, data.image, torch.device(device))
    return model, train(model, trial, data, folder, lambda done, total, phase: None, lambda: False)


def test_on_a_cpu_steps_are_eager_and_the_record_says_so(data, tmp_path):
    plain, _ = trained("vae", data, tmp_path / "off", "cpu")
    model, result = trained("vae", data, tmp_path / "graph", "cpu", "training.compile='graph'")
    assert result.compilation == "compile = graph, but the training ran eagerly: CUDA graphs need a GPU"
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


class NoStream:
    """Stands in for a stream of a GPU."""

    def __init__(self, *arguments):
        pass

    def wait_stream(self, other):
        pass


def test_where_a_capture_fails_steps_go_on_eagerly(data, tmp_path, monkeypatch, capsys):
    def no_graph(*arguments, **options):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def started(state, trial, images):
        state.graphs = StepGraphs(state.optimizer, images.device)
        return "steps replayed as CUDA graphs"

    plain, _ = trained("nvae", data, tmp_path / "off", "cpu")
    for name, stand_in in (("Stream", NoStream), ("current_stream", NoStream), ("graph", no_graph)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name, stand_in in (("stream", contextlib.nullcontext), ("CUDAGraph", object), ("synchronize", print)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr("benchmarks.training.loop.compile_step", started)
    model, result = trained("nvae", data, tmp_path / "graph", "cpu")
    said = "compile = graph, but steps run eagerly: operation not permitted when stream is capturing"
    assert result.compilation == said
    assert capsys.readouterr().err.splitlines().count(said) == 1
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


FROM_LISTS = {"tensor", "new_tensor", "as_tensor", "from_numpy"}


class Lists(TorchFunctionMode):
    """Notes calls that bring numbers of the host: each waits for the device, and no graph can hold it."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, given=(), named=None):
        if getattr(function, "__name__", "") in FROM_LISTS:
            self.found.append(function.__name__)
        return function(*given, **(named or {}))


class Copies(TorchDispatchMode):
    """Notes operations on tensors of several devices, and those that read a number."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        result = operation(*given, **(named or {}))
        tensors = [one for one in tree_leaves((given, named, result)) if isinstance(one, torch.Tensor)]
        if "_local_scalar" in str(operation) or len({one.device.type for one in tensors}) > 1:
            self.found.append(str(operation))
        return result


def asked_of_the_host(monkeypatch):
    """What a step with the operations of a GPU waits for or brings there, tried with tensors that hold nothing.

    They go forward and into the update; a value that the host asks of them is an error. (A backward pass has no
    operations of ours but those that the kernels register.)
    """
    monkeypatch.setattr(weights, "best_for", lambda device: operators.FUSED)
    target = preset_target("nvae-tiny")
    model = target.build(META).train()
    guard = StepGuard(model, build_optimizer(target.trial.training, model, torch.device("cuda")))
    image, number = target.image, torch.zeros((), device=META)
    images = torch.empty(2, image.channels, image.height, image.width, device=META)
    guard.optimizer.param_groups[0]["lr"] = number
    draw = Draw(torch.zeros((), dtype=torch.int64, device=META))
    found: list[str] = []
    for _ in range(2):  # the first one starts what starts from data
        guard.keep()
        found.clear()
        with Lists(found), Copies(found):
            loss = loss_of(model, target.trial, images, draw, LossWeights(number, number, True))
            for parameter in guard.parameters:
                parameter.grad = torch.empty_like(parameter)
            guard.take(guard.measure(loss), 1.0)
    return found


def test_a_step_on_a_gpu_asks_nothing_of_the_host(monkeypatch):
    assert asked_of_the_host(monkeypatch) == []


@pytest.mark.parametrize(
    "balance",
    [
        lambda rates, resolutions, rule: rates.new_tensor([1.0 for _ in resolutions]),
        lambda rates, resolutions, rule: torch.ones(len(resolutions)).to(rates.device),
    ],
    ids=["list", "copy"],
)
def test_what_is_brought_from_the_host_is_seen(balance, monkeypatch):
    monkeypatch.setattr("models.elbo.balance", balance)
    assert asked_of_the_host(monkeypatch)


def distance(start, model, other):
    """How far apart two trainings came, as a share of how far one went from its start.

    Single weights tell nothing: Adam moves one whose gradient is all but rounding (a bias in front of a batch norm) by
    the learning rate.
    """
    columns = [
        torch.cat([p.detach().double().flatten().cpu() for p in one.parameters()]) for one in (start, model, other)
    ]
    return float((columns[1] - columns[2]).norm() / (columns[1] - columns[0]).norm())


@pytest.mark.slow
def test_trainings_that_differ_in_rounding_are_alike_and_others_are_not(data, tmp_path, monkeypatch):
    found = []
    for ops, rate in ((CPU, 1e-20), (CPU, 1e-3), (REFERENCE, 1e-3), (CPU, 1.3e-3)):
        monkeypatch.setattr(weights, "best_for", lambda device, ops=ops: ops)
        options = (f"models.nvae.training.learning_rate={rate}", "training.clip_norm=100")
        found.append(trained("nvae", data, tmp_path / f"{ops.name}{rate}", "cpu", *options)[0])
    start, usual, other, faster = found
    assert distance(start, usual, other) < ALIKE / 2
    assert distance(start, usual, faster) > ALIKE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "adamax"])
@pytest.mark.parametrize("row", ["ae", "vae", "nvae"])
def test_replayed_steps_are_the_eager_ones(row, optimizer, data, tmp_path):
    options = (f"training.optimizer='{optimizer}'", f"models.{row}.training.learning_rate=1e-3", "training.ema=0.9")
    options = (*options, "objective.kl_warmup=0.5", "training.clip_norm=100")  # captured in several forms
    plain, eager = trained(row, data, tmp_path / "off", "cuda", *options)
    model, graphed = trained(row, data, tmp_path / "graph", "cuda", *options, "training.compile='graph'")
    assert graphed.compilation == "steps replayed as CUDA graphs"
    for one, other in zip(eager.curves, graphed.curves, strict=True):
        assert other.values == pytest.approx(one.values, rel=LOSS)
    start, _ = trained(row, data, tmp_path / "start", "cuda", *options, f"models.{row}.training.learning_rate=1e-20")
    assert distance(start, plain, model) < ALIKE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_is_not_finite_is_undone_in_a_replay(data, tmp_path):
    options = ("models.vae.training.learning_rate=1e30", "training.warmup=0.0", "training.hopeless_after=4")
    _, result = trained("vae", data, tmp_path, "cuda", *options, "training.compile='graph'")
    assert result.skipped
    assert result.hopeless

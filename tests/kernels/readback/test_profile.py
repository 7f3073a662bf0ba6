"""The profile verb: rows, files and messages, with and without the tools."""

import contextlib
import csv
import json
import subprocess
import sys
import types

import pytest
import torch

from benchmarks.base.errors import UserError
from benchmarks.profiling import kernel_timing, proton
from benchmarks.profiling import profile as verb
from benchmarks.profiling.kernel_timing import EAGER, LOGARITHM, NOISE, noise_error, time_problem
from benchmarks.profiling.problems import gaussian_problem, mixture_problem
from kernels.cpu.backend import CPU
from kernels.ops import PLAIN
from kernels.readback.disassembly import ToolsMissing
from kernels.readback.static_profile import KERNELS
from kernels.reference.philox import normals

CPU_DEVICE = torch.device("cpu")
STATIC_KEYS = {
    "kernel",
    "direction",
    "dtype",
    "target",
    "registers",
    "spills",
    "local_memory_bytes",
    "shared_memory_bytes",
    "barriers",
    "load_bits",
    "store_bits",
    "instructions_per_element",
    "special_functions_per_element",
    "bytes_per_element",
    "bytes_floor",
    "bytes_eager",
    "estimate_us_per_million",
    "bound",
}


@pytest.fixture
def one_kernel(monkeypatch):
    pytest.importorskip("triton")
    profiles = verb.static_profiles
    monkeypatch.setattr(verb, "static_profiles", lambda targets, dtypes: profiles(targets, dtypes, KERNELS[:1]))


@pytest.fixture
def one_problem(monkeypatch):
    problem = gaussian_problem(KERNELS[0].name, PLAIN, False, (4, 8), torch.float32, CPU_DEVICE)
    monkeypatch.setattr(kernel_timing, "problems", lambda device, dtypes: [problem])
    monkeypatch.setattr(verb, "problems", lambda device, dtypes: [problem])
    monkeypatch.setitem(kernel_timing.COPY_BYTES, "cpu", 1 << 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_rows_go_to_table_and_files(one_kernel, one_problem, tmp_path, capsys):
    files = {name: tmp_path / f"profile.{name}" for name in ("json", "csv")}
    figure, trace = tmp_path / "roofline.svg", tmp_path / "trace.json"
    rows = verb.profile(["sm_90"], ["fp32"], **files, figure=figure, trace=trace)
    assert [row["part"] for row in rows] == ["static"] * 2 + ["coverage"] * 4 + ["timed"]
    assert set(rows[0]) >= STATIC_KEYS
    assert json.loads(files["json"].read_text())[0]["bound"] == rows[0]["bound"]
    with files["csv"].open(newline="") as file:
        assert [row["part"] for row in csv.DictReader(file)] == [row["part"] for row in rows]
    assert "<svg" in figure.read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    printed = capsys.readouterr()
    assert "| gaussian, standard-normal prior | forward" in printed.out
    assert "not measured" in printed.out
    assert "no GPU here" in printed.err


def test_without_the_tools_it_says_what_is_missing(monkeypatch, one_problem, capsys):
    def missing(*_):
        raise ToolsMissing("nvdisasm is missing: it comes in Triton's Linux wheel")
        yield

    monkeypatch.setattr(verb, "static_profiles", missing)
    rows = verb.profile(["sm_90"], ["fp32"])
    assert [row["part"] for row in rows] == ["timed"]
    assert "nvdisasm is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("targets", "dtypes", "message"),
    [(["h100"], ["fp32"], "unknown target 'h100'"), (["sm_90"], ["fp23"], "did you mean")],
)
def test_unknown_names_are_one_line(targets, dtypes, message):
    with pytest.raises(UserError, match=message):
        verb.profile(targets, dtypes)


def test_a_wrong_operation_is_not_timed():
    problem = gaussian_problem("gaussian", PLAIN, False, (4, 8), torch.float32, CPU_DEVICE)
    row = time_problem(problem, EAGER, CPU_DEVICE, bandwidth=1.0)  # other noise than the keyed one
    assert row.p50_us is None
    assert row.note.startswith("not timed: values: error")


def test_timed_rows_are_consistent():
    problem = mixture_problem((2, 3, 8, 8), torch.float32, CPU_DEVICE)
    row = time_problem(problem, CPU, CPU_DEVICE, bandwidth=10.0)
    assert row.p20_us <= row.p50_us <= row.p80_us
    assert row.gb_per_s == pytest.approx(problem.floor / row.p50_us / 1e3)
    assert row.copy_share == pytest.approx(row.gb_per_s / 10)
    assert row.launches is None


def frame(name, *children, **metrics):
    """A frame of Proton's JSON output."""
    return {"frame": {"name": name, "type": "function"}, "metrics": metrics, "children": list(children)}


def kernel(name, count, nanoseconds):
    return frame(name, count=count, **{"time (ns)": nanoseconds, "device_id": "0", "device_type": "CUDA"})


TREE = frame(
    "ROOT",
    frame("flush", kernel("fill", 10, 900_000)),
    frame("__proton_launch_metadata", kernel("metadata", 10, 10_000)),
    frame("step", kernel("forward", 6, 30_000), kernel("reduce", 10, 10_000)),
    kernel("forward", 4, 30_000),  # launched by another thread
    kernel("backward", 10, 80_000),
    **{"count": 0, "time (ns)": 0},
)


def test_kernels_are_found_in_a_proton_profile():
    assert proton.read_tree(TREE) == {"forward": (10, 60_000), "backward": (10, 80_000), "reduce": (10, 10_000)}
    problem = gaussian_problem("gaussian", PLAIN, False, (4, 8), torch.bfloat16, CPU_DEVICE)
    rows = proton.rows_of(problem, TREE, repeats=5)
    assert [row.gpu_kernel for row in rows] == ["backward", "forward", "reduce"]
    assert rows[0] == proton.KernelTime("gaussian", (4, 8), "bfloat16", "backward", launches=2, proton_us=8)


def test_proton_records_repeats_with_cold_caches(monkeypatch, tmp_path):
    happened = []

    @contextlib.contextmanager
    def scope(name):
        happened.append(name)
        yield

    pytest.importorskip("triton")
    profiler = types.SimpleNamespace(scope=scope)
    profiler.start = lambda name: happened.append("start")
    profiler.finalize = lambda: (tmp_path / "0.hatchet").write_text(json.dumps([TREE, {"CUDA": {}}]))
    monkeypatch.setattr("triton.profiler", profiler, raising=False)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    tree = proton.record(lambda: happened.append("call"), lambda: happened.append("fill"), tmp_path / "0")
    assert tree == TREE
    assert happened == ["call", "start", *["flush", "fill", "call"] * proton.REPEATS]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so that Proton may start")
def test_proton_without_a_gpu_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert verb.proton_part() == []
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Proton gave no times of single kernels: ")
    assert printed.err.count("\n") == 1
    assert "GPU" in printed.err


WITHOUT_TRITON = """
import json, sys
sys.modules["triton"] = None  # as on macOS: importing it fails, and nothing finds it
from benchmarks.cli.parser import run_command
for words in json.loads(sys.argv[1]):
    print(run_command(words))
"""


def test_without_triton_one_line_says_so():
    commands = [["profile", "--static"], ["profile", "--targets", "sm_9"]]
    command = [sys.executable, "-c", WITHOUT_TRITON, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "0\n2\n")
    missing, unknown = done.stderr.splitlines()
    assert missing == "static profile: triton is not installed; pip install triton (Linux only)"
    assert "did you mean 'sm_90'" in unknown


def test_the_error_allowed_of_noise_bounds_an_approximate_logarithm():
    noise = normals(torch.tensor(0), 0, (128, 1279), dtype=torch.float64)
    pairs = torch.nn.functional.pad(noise, (0, 1)).view(128, -1, 2)
    radius = torch.linalg.vector_norm(pairs, dim=-1, keepdim=True)
    allowed = noise_error(noise)
    for sign in (1, -1):
        approximate = (radius.square() + sign * LOGARITHM).clamp_min(0).sqrt()
        off = (pairs / radius * approximate - pairs).abs().flatten(1)[:, :-1]
        assert bool((off <= allowed).all())
    assert allowed.min() >= NOISE
    assert float((allowed > 2 * NOISE).double().mean()) < 1e-3

"""Synthetic trials of a run: records and saved images that no model made."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.records.record import (
    GALLERY,
    Curve,
    Environment,
    LatentGroupInfo,
    Measurement,
    RunRecord,
    save_record,
    save_run,
)
from benchmarks.report.page import build_report

ENVIRONMENT = Environment(
    python="3.12.3",
    torch="2.14.1+cpu",
    torchvision="0.29.1",
    triton="3.8.0",
    torch_fidelity="0.4.0",
    cuda=None,
    device="cpu",
    device_name="AMD EPYC 7B13",
    cpu="AMD EPYC 7B13",
    cores=2,
    threads=1,
    precision="float32",
    operations="cpu",
    platform="Linux",
    suite_version="0.1.0",
    commit="0123456789abcdef",
    dirty=True,
    command="python -m benchmarks run",
    date="2026-11-22T13:00:00+00:00",
)
HIERARCHY = [
    LatentGroupInfo(8, 2, 2, 2.1, 20, 32),
    LatentGroupInfo(8, 4, 4, 6.5, 60, 128),
    LatentGroupInfo(8, 8, 8, 11.0, 200, 512),
    LatentGroupInfo(8, 8, 8, 9.0, 150, 512),
]
EXTRACTOR = {"extractor": "mnist-cnn-v1", "weights_sha256": "5f" * 32}


def value(metric: str, number: float | None, half: float | None = None, **fields: Any) -> Measurement:
    """A measurement with a symmetric interval."""
    higher = {"elbo": True, "iwae_bound": True, "psnr": True, "mse": False, "sample_fid": False}
    spread: dict[str, Any] = {}
    if number is not None and half is not None:
        spread = {"low": number - half, "high": number + half, "spread_kind": "bootstrap 95%"}
    return Measurement(metric, number, fields.pop("unit", ""), higher.get(metric), **(spread | fields))


def quality(elbo: float | None, mse: float, fid: float | None, likelihood: str) -> list[Measurement]:
    """The quality metrics of one trial; `elbo` None is a plain autoencoder."""
    missing = {"note": "no prior"} if elbo is None else {}
    bound = None if elbo is None else elbo + 2.5
    return [
        value("elbo", elbo, 0.9, unit="nats", n=1000, details={"likelihood": likelihood}, **missing),
        value("iwae_bound", bound, 0.8, unit="nats", n=1000, details={"k": 50}, **missing),
        value("bits_per_dim", None, unit="bits/dim", note="defined for integer levels only"),
        value("mse", mse, 0.00021, unit="0-1", n=1000),
        value("psnr", -10 * float(np.log10(mse)), 0.05, unit="dB", n=1000),
        value("sample_fid", fid, n=1000, details=EXTRACTOR if fid else {}, **missing),
        value("reconstruction_fid", 60 * mse, n=1000, details=EXTRACTOR),
        value("fid_floor", 0.128, n=1000, details=EXTRACTOR),
    ]


def rates(train: float, sample: bool) -> list[Measurement]:
    """The throughput metrics of one trial."""
    details = {"batch": 32, "threads": 1, "precision": "float32", "load": 0.3}
    factors = {"train": 1.0, "encode": 6.0, "reconstruct": 3.0, "sample": 4.0}
    found = [
        Measurement(
            f"{name}_throughput",
            *((train * factor, "img/s", True, 20, train * factor * 0.96, train * factor * 1.03, "IQR")),
            details=details,
        )
        for name, factor in factors.items()
    ]
    if not sample:
        found[-1] = Measurement("sample_throughput", None, "img/s", True, note="no prior", details=details)
    return [*found, Measurement("peak_memory", 410.0 + train / 10, "MiB", False)]


def build_record(row: str = "vae", seed: int = 0, measurements: list[Measurement] | None = None, **fields: Any):
    """A record of a small model; `fields` replace any field of it."""
    config = {"model": row, "likelihood": "gaussian" if row == "ae" else "bernoulli", "seed": seed}
    base = RunRecord(
        suite="quick",
        row=row,
        label=fields.pop("label", row.upper()),
        model=row,
        data="mnist-5k",
        data_hash="ab12cd34" * 8,
        seed=seed,
        config_hash=f"{row}-{seed}-hash",
        config=config,
        environment=ENVIRONMENT,
        status="done",
        parameters=119_000,
        macs_per_image=3_200_000,
        latent_groups=[LatentGroupInfo(16, 1, 1, 18.0, 14, 16)],
        images_seen=32_000,
        steps=1000,
        training_seconds=31.7,
        measurements=quality(-107.8, 0.0148, 9.17, "bernoulli") if measurements is None else measurements,
    )
    return dataclasses.replace(base, **fields)


def build_suite() -> list[RunRecord]:
    """Four rows as a quick run makes them: AE, VAE, residual VAE, NVAE."""
    images = list(np.linspace(1000, 32000, 32))

    def curves(end: float) -> list[Curve]:
        falling = [end + 150 * float(np.exp(-x / 5000)) for x in images]
        return [
            Curve("loss", "nats/image", images, falling),
            Curve("validation elbo", "nats/image", images[3::4], [-v - 1 for v in falling[3::4]]),
        ]

    def trial(row: str, label: str, elbo: float | None, mse: float, fid: float | None, rate: float, **fields: Any):
        found = quality(elbo, mse, fid, "bernoulli") + rates(rate, elbo is not None)
        if elbo is not None:
            found.append(Measurement("active_units", 14.0, "units", None, 1000))
        return build_record(row, measurements=found, label=label, curves=curves(-(elbo or -40)), **fields)

    return [
        trial("ae", "AE", None, 0.0060, None, 1100, latent_groups=[]),
        trial("vae", "VAE", -107.8, 0.0148, 9.17, 1004),
        trial("residual", "Residual VAE", -112.2, 0.0157, 12.9, 260, parameters=281_002),
        trial("nvae", "NVAE", -101.1, 0.0098, 3.97, 240, parameters=278_431, latent_groups=HIERARCHY),
    ]


def write_trial(out: Path, record: RunRecord, seed: int = 0) -> Path:
    """Save a record and its images below `out`; squares stand for the images."""
    folder = out / record.config_hash
    save_record(record, folder)
    rng = np.random.default_rng(seed)
    originals = np.zeros((16, 28, 28, 1), np.uint8)
    for image in originals:
        top, left = rng.integers(3, 14, 2)
        image[top : top + 11, left : left + 8] = 230
    noisy = np.clip(originals + rng.normal(0, 25, originals.shape), 0, 255).astype(np.uint8)
    arrays = {"originals": originals, "reconstructions": noisy}
    if record.latent_groups:
        arrays["samples"] = np.tile(noisy, (4, 1, 1, 1))
    np.savez(folder / "images.npz", **arrays)  # pyright: ignore[reportArgumentType]
    np.savez(folder / GALLERY, **gallery(record, noisy))  # pyright: ignore[reportArgumentType]
    return folder


def gallery(record: RunRecord, images: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures for the page, of a record's model, made of sixteen images (16, H, W, C)."""
    if not record.latent_groups:
        return {}

    def grid(*axes: int) -> np.ndarray:
        return np.resize(images, (*axes, *images.shape[1:]))

    found = {
        "temperatures": np.array([0.5, 0.7, 0.85, 1.0]),
        "at_temperature": grid(4, 8),
        "interpolations": grid(4, 10),
        "samples": grid(8),
        "neighbours": grid(8),
        "sample_errors": np.linspace(0.01, 0.04, 64),
        "test_errors": np.linspace(0.02, 0.03, 64),
    }
    if len(record.latent_groups) > 1:
        found |= {"cuts": np.array([1, 2]), "finer_redrawn": grid(3, 2, 8), "coarser_redrawn": grid(3, 2, 8)}
    return found


def write_run(out: Path) -> Path:
    """Save the four trials of a run and their order below `out`."""
    folders = [write_trial(out, record).name for record in build_suite()]
    save_run(out, folders)
    return out


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    """`make_record(row, seed, measurements, **fields)`."""
    return build_record


@pytest.fixture
def make_value() -> Callable[..., Measurement]:
    """`make_value(metric, number, half, **fields)`."""
    return value


@pytest.fixture
def suite_records() -> list[RunRecord]:
    """The four rows of a quick run, in the order of its table."""
    return build_suite()


@pytest.fixture(scope="session")
def built_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its report built; tests read it only."""
    out = write_run(tmp_path_factory.mktemp("run"))
    build_report(out)
    return out


@pytest.fixture
def unsaved(monkeypatch):
    """Reports write tables and pages, no figures beside them: each drawn as PNG and SVG takes longer than all else."""
    monkeypatch.setattr("benchmarks.report.pictures.figures.save", lambda figure, path: None)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's output folder with four trials and their images."""
    return write_run(tmp_path)

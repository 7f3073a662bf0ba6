"""Batch-norm statistics of images from the prior: what they are, followed by packed cells, gone afterwards."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.base.errors import UserError
from benchmarks.base.streams import seed_tensor
from benchmarks.cli.parser import run_command
from benchmarks.data import load
from benchmarks.evaluation import samples as sampling
from benchmarks.evaluation.evaluate import NO_BATCH_NORM, NO_PRIOR, Evaluation, evaluate
from benchmarks.evaluation.samples import prior_statistics
from benchmarks.records.catalogue import PRIOR_STATISTICS_METRICS
from benchmarks.storage.weights import save_weights
from benchmarks.suites.config import build_suite, read_suite, set_path
from kernels.backends import best_for
from kernels.reference.backend import REFERENCE
from models.layers.norm_statistics import averaged_anew, batch_norms
from models.output import Draw
from models.registry import build

CPU = torch.device("cpu")
FLOAT32 = 1e-4  # two orders of summation through a dozen normalised layers
BATCHES, SEED = 3, 4
PLAIN = "models.vae.residual_blocks=0"
ROWS = {
    "vae": ("vae", PLAIN),
    "strong vae": ("vae", "models.vae.residual_blocks=1"),
    "residual-vae": ("residual-vae", PLAIN),
    "nvae": ("nvae", PLAIN),
    "nvae of inverted residuals": ("nvae", 'models.nvae.arch="res_mbconv"'),
}
WITHOUT = {
    "ae": ("ae", PLAIN, NO_PRIOR),
    "vae of linear layers": ("vae", "models.vae.hidden=[16]", NO_BATCH_NORM),
    "nvae without norms": ("nvae", 'models.nvae.arch="res_elu"', NO_BATCH_NORM),
}


@pytest.fixture(scope="module")
def digits():
    data = load("mnist-5k")
    return dataclasses.replace(data, train=data.train[:64], test=data.test[:24])


def trial_of(row, *assignments):
    name, table = read_suite("quick")
    for assignment in ("evaluation.iwae_samples=1", *assignments):
        set_path(table, assignment)
    return build_suite(name, table, [row]).trials[0]


def trained(trial, data, ops=None):
    """A model whose statistics are of some training images, as nothing else of a training matters here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(trial.model, trial.model_config, data.image, trial.likelihood_spec, ops or best_for(CPU))
    x = (data.train[:32].float() / 255 > 0.5).float()
    with torch.no_grad():
        for index in range(3):
            model.train()(x, Draw(torch.tensor(index)))
    return model.eval()


def state_of(model):
    """All that may not change: tensors, modes and momenta."""
    modes = [module.training for module in model.modules()]
    return copy.deepcopy(model.state_dict()), modes, [norm.momentum for norm in batch_norms(model)]


def images(model):
    with torch.no_grad():
        return model.sample(5, Draw(torch.tensor(9))).mean()


def fitted(model, seed, batches, temperature):
    """The block with batches of 8 images."""
    return prior_statistics(model, seed, batches, temperature, 8)


def assert_same(one, other):
    (tensors, *rest), (others, *others_rest) = one, other
    assert rest == others_rest
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        assert torch.equal(value, others[key]), key


@pytest.mark.parametrize("row", ROWS)
def test_the_model_is_as_it_was_and_so_are_its_samples(row, digits):
    model = trained(trial_of(*ROWS[row]), digits)
    model.get_submodule(next(name for name, _ in model.named_children())).train()  # a mode of its own
    before, drawn = state_of(model), images(model)
    with fitted(model, SEED, BATCHES, 1.0) as norms:
        assert norms > 0
        inside = images(model)
    assert_same(state_of(model), before)
    assert torch.equal(images(model), drawn)
    assert not torch.allclose(inside, drawn, atol=1e-3)


@pytest.mark.parametrize("row", ROWS)
def test_a_failure_inside_leaves_no_trace(row, digits):
    model = trained(trial_of(*ROWS[row]), digits)
    before = state_of(model)
    with pytest.raises(ValueError, match="midway"), fitted(model, SEED, BATCHES, 1.0):
        raise ValueError("midway")
    model.decode_parameters = lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError), fitted(model, SEED, BATCHES, 1.0):
        pass
    del model.decode_parameters
    assert_same(state_of(model), before)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("row", ROWS)
def test_operations_of_the_cpu_follow_the_statistics_as_the_reference_does(row, inference, digits):
    """Packed cells have folded their norms: one that they missed would show against a model that packs nothing."""
    trial = trial_of(*ROWS[row])
    pictures = []
    for ops in (best_for(CPU), REFERENCE):
        model = trained(trial, digits, ops)
        with torch.inference_mode(inference):
            found = [images(model)]
            with fitted(model, SEED, BATCHES, 1.0):
                found.append(images(model))
            with fitted(model, SEED + 1, BATCHES, 0.5):
                found.append(images(model))
            pictures.append([*found, images(model)])
    for ours, reference in zip(*pictures, strict=True):
        torch.testing.assert_close(ours, reference, rtol=FLOAT32, atol=FLOAT32)
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(pictures[1], pictures[1][1:], strict=False))


@pytest.mark.parametrize("row", ROWS)
def test_statistics_are_those_of_the_batches_that_came_to_the_norm(row, digits):
    """Of the first norm behind the latents: mean over batches of the mean and unbiased variance of what it was given.

    The reference's modules run one by one, so that a hook sees the norm's input.
    """
    model = trained(trial_of(*ROWS[row]), digits, REFERENCE)
    given, order = {}, []

    def note(name, x):
        given.setdefault(name, []).append(x.detach().double())
        order.append(name)

    names = {module: name for name, module in model.named_modules()}
    original = nn.functional.batch_norm
    by_mean = {norm.running_mean.data_ptr(): norm for norm in batch_norms(model)}

    def watched(x, running_mean, *rest):
        note(names[by_mean[running_mean.data_ptr()]], x)
        return original(x, running_mean, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "batch_norm", watched)
        with fitted(model, SEED, BATCHES, 0.7) as norms:
            found = copy.deepcopy(model.get_submodule(order[0]))
    assert len(given) == norms
    assert len(given[order[0]]) == BATCHES
    batches = given[order[0]]
    mean = torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1, correction=1) for x in batches]).mean(0)
    torch.testing.assert_close(found.running_mean.double(), mean, rtol=FLOAT32, atol=FLOAT32)
    if "mbconv" not in str(ROWS[row]):  # there pixels are repeated later, and count so
        torch.testing.assert_close(found.running_var.double(), variance, rtol=FLOAT32, atol=FLOAT32)


def test_first_norm_of_the_vae_has_the_statistics_of_latents_of_the_keyed_stream(digits):
    """Worked out here from the latents' stream alone."""
    model = trained(trial_of(*ROWS["strong vae"]), digits)
    decoder, key = model.decoder, seed_tensor(SEED, "prior statistics", CPU)
    with torch.no_grad():
        batches = [model.sample_state(8, Draw(key, first_sample=8 * index), 0.7) for index in range(BATCHES)]
        maps = [decoder.stem(z.flatten(1)).unflatten(1, decoder.bottom) for z in batches]
    first = batch_norms(decoder)[0]
    with fitted(model, SEED, BATCHES, 0.7):
        means = torch.stack([x.mean((0, 2, 3)) for x in maps]).mean(0)
        torch.testing.assert_close(first.running_mean, means, rtol=FLOAT32, atol=FLOAT32)
        variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in maps]).mean(0)
        torch.testing.assert_close(first.running_var, variances, rtol=FLOAT32, atol=FLOAT32)


def test_norms_of_the_encoder_keep_their_statistics(digits):
    model = trained(trial_of(*ROWS["vae"]), digits)
    own = copy.deepcopy(model.state_dict())
    with fitted(model, SEED, BATCHES, 1.0):
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, own[key])}
    assert changed
    assert all(key.startswith("decoder.") for key in changed)


def test_a_pass_that_nothing_reaches_changes_nothing(digits):
    model = trained(trial_of(*ROWS["vae"]), digits)
    before = state_of(model)
    with averaged_anew(model) as reached:
        pass
    assert reached == []
    assert_same(state_of(model), before)


def silent(done, total, phase):
    pass


def evaluated(row, assignment, data, prior_batches=0):
    trial = trial_of(row, assignment)
    trial = dataclasses.replace(trial, evaluation=dataclasses.replace(trial.evaluation, prior_batches=prior_batches))
    return evaluate(trained(trial, data), trial, data, silent)


def values_of(found: Evaluation):
    return {m.metric: m.value for m in found.measurements}


def test_scores_stand_beside_those_of_the_same_latents_and_repeat(digits):
    plain, twice = evaluated("vae", PLAIN, digits), [evaluated("vae", PLAIN, digits, prior_batches=2) for _ in range(2)]
    scores = [values_of(found) for found in twice]
    assert scores[0] == scores[1]
    assert scores[0].keys() - values_of(plain).keys() == set(PRIOR_STATISTICS_METRICS)
    assert {name: scores[0][name] for name in values_of(plain)} == values_of(plain)
    assert scores[0]["sample_fid_prior_statistics"] != scores[0]["sample_fid"]
    assert np.array_equal(twice[0].pictures["samples"], plain.pictures["samples"])
    assert twice[0].pictures["samples_prior_statistics"].shape == plain.pictures["samples"].shape
    details = next(m.details for m in twice[0].measurements if m.metric == "sample_fid_prior_statistics")
    assert (details["prior_batches"], details["prior_batch_size"], details["extractor"]) == (2, 100, "mnist-cnn-v1")


def test_one_setting_alone_is_the_plain_distance(digits, monkeypatch):
    """With the model's own statistics in place of those of the prior, the paired values agree."""
    monkeypatch.setattr(sampling, "_measure", lambda *_: 1)
    found = values_of(evaluated("vae", PLAIN, digits, prior_batches=2))
    for plain, refitted in zip(("sample_fid", "kid", "precision", "recall"), PRIOR_STATISTICS_METRICS, strict=True):
        assert found[refitted] == found[plain]


@pytest.mark.parametrize("row", WITHOUT)
def test_models_without_a_prior_or_batch_norm_have_dashes_that_say_so(row, digits):
    name, assignment, note = WITHOUT[row]
    found = evaluated(name, assignment, digits, prior_batches=2)
    dashes = {m.metric: m for m in found.measurements if m.metric in PRIOR_STATISTICS_METRICS}
    assert {(m.value, m.note) for m in dashes.values()} == {(None, note)}
    assert len(dashes) == len(PRIOR_STATISTICS_METRICS)
    assert found.failures == []
    assert "samples_prior_statistics" not in found.pictures


def test_a_number_of_batches_below_zero_is_refused():
    with pytest.raises(UserError, match=r"evaluation.prior_batches: expected a value >= 0 .*, got -1"):
        trial_of("vae", "evaluation.prior_batches=-1")


def test_sample_draws_under_them_and_refuses_models_without(digits, tmp_path, capsys):
    codes, drawn = [], {}
    for row, (name, assignment) in {"vae": ("vae", PLAIN), "mlp": WITHOUT["vae of linear layers"][:2]}.items():
        trial = trial_of(name, assignment)
        save_weights(trained(trial, digits), trial, "hash", tmp_path / f"{row}.safetensors")
    for row, flags in (("vae", []), ("vae", ["--prior-statistics", "2"]), ("mlp", ["--prior-statistics", "2"])):
        path = tmp_path / f"{row}{len(flags)}.npz"
        checkpoint = str(tmp_path / f"{row}.safetensors")
        codes.append(run_command(["sample", checkpoint, "--npz", str(path), "--n", "4", *flags]))
        drawn[path.name] = np.load(path)["images"] if path.exists() else None
    assert codes == [0, 0, 2]
    assert not np.array_equal(drawn["vae0.npz"], drawn["vae2.npz"])
    assert drawn["mlp2.npz"] is None
    assert "expected a model with batch norm between the prior and the image" in capsys.readouterr().err

"""Conditions of `compare --fail-if`: what they say, and what they refuse."""

import pytest

from benchmarks.base.errors import UserError
from benchmarks.report.rows import gather
from benchmarks.report.verdict.conditions import LONGEST, Condition


@pytest.fixture
def rows(make_record, make_value):
    """A base and an NVAE: FID 10 and 8, ELBO -100 and a dash."""
    found = {}
    for name, row, fid, elbo in (("base", "vae", 10.0, -100.0), ("nvae", "nvae", 8.0, None)):
        values = [make_value("sample_fid", fid, 0.5, n=1000), make_value("elbo", elbo, note="no prior")]
        found[name] = gather([make_record(row, 0, values)])[0]
    return found


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("nvae.fid > 1.05 * base.fid", False),
        ("nvae.fid <= 0.8 * base.fid", True),
        ("nvae.sample_fid == 8", True),
        ("7 < nvae.fid < 9 and not base.fid != 10", True),
        ("nvae.fid > 9 or base.elbo < -99", True),
        ("abs(nvae.fid - base.fid) >= 2", True),
        ("max(nvae.fid, base.fid) / min(nvae.fid, base.fid) > 1.3", False),
        ("nvae.fid.high < base.fid.low", True),
        ("nvae.fid.n >= 1000", True),
        (" -base.elbo + 0 == 1e2 ", True),
        ("base.training_seconds > base.images / 1000", False),
    ],
)
def test_conditions(rows, text, holds):
    assert Condition(text, rows).holds() == holds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nvea.fid > 1", "unknown row of --fail-if 'nvea'; did you mean 'nvae'"),
        ("nvae.fdi > 1", "unknown metric of --fail-if 'fdi'; did you mean 'fid'"),
        ("mean(1, 2) > 1", "unknown function of --fail-if 'mean'"),
        ("nvae.elbo > -100", r"no value of nvae.elbo|value of nvae.elbo, got none \(no prior\)"),
        ("nvae.kid > 0", r"got none \(not measured\)"),
        ("base.elbo.low > 0", r"got none"),
        ("nvae.fid", "expected a condition like"),
        ("1.05 * base.fid", "expected a condition like"),
        ("fid > 1", "'fid' alone"),
        ("nvae.fid > '1'", "expected a condition like"),
        ("nvae.fid > True", "expected a condition like"),
        ("nvae.fid in (1, 2)", "expected a condition like"),
        ("nvae.fid ** 99999 > 1", "expected a condition like"),
        ("nvae.fid / 0 > 1", "division by zero"),
        ("abs(1, 2) > 1", "abs of 2 numbers"),
        ("__import__('os').system('true') == 0", "expected a condition like"),
        ("nvae.row.__class__ > 1", "unknown row of --fail-if 'nvae.row'"),
        ("[x for x in (1,)] > 1", "expected a condition like"),
        ("nvae.fid >", "expected a condition like"),
        ("", "expected a condition like"),
        ("(" * 300 + "1" + ")" * 300 + " > 0", "at most 500 characters"),
        ("(" * 240 + "1" + ")" * 240 + " > 0", "expected a condition like"),
        ("not " * 120 + "1", "expected a condition like"),
    ],
)
def test_what_is_no_condition_is_refused(rows, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        Condition(text, rows).holds()
    assert len(str(error.value)) < 3 * LONGEST

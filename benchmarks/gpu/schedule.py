"""The steps in the order of their value, and how the time is shared among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.base.errors import unknown


@dataclass(frozen=True)
class Step:
    """One step of the command.

    Args:
        name: what it is called, on the command line and as a file.
        module: where its function `run(findings)` lives.
        share: of the time, against the other steps' shares.
        least: seconds below which it is not worth starting.
        case_seconds: after which a single case counts as hanging; None leaves that to the step's limit.
        alone: nothing may run beside it, since it times.
    """

    name: str
    module: str
    share: float
    least: float = 10.0
    case_seconds: float | None = 60.0
    alone: bool = True


STEPS = (
    Step("environment", "benchmarks.gpu.environment", 0.06, least=4.0),
    Step("kernels", "benchmarks.gpu.kernels", 0.28, alone=False),
    Step("tests", "benchmarks.gpu.gpu_tests", 0.28, case_seconds=None, alone=False),
    Step("parity", "benchmarks.gpu.parity", 0.28, case_seconds=90.0, alone=False),
    Step("timing", "benchmarks.gpu.timing", 0.17),
    Step("models", "benchmarks.gpu.models", 0.36, case_seconds=150.0),
    Step("training", "benchmarks.gpu.training", 0.13, case_seconds=100.0),
)


def choose(only: str | None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """The steps named in `only`, between commas, in their order; all of them for None.

    Raises:
        UserError: an unknown name, with the nearest one.
    """
    if only is None:
        return list(steps)
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in {step.name for step in steps}:
            raise unknown("step", name, [step.name for step in steps])
    return [step for step in steps if step.name in names]


def groups(steps: Iterable[Step], together: bool) -> list[list[Step]]:
    """Steps that run at the same time: neighbours that time nothing, where `together`; else each by itself."""
    found: list[list[Step]] = []
    for step in steps:
        if found and together and not step.alone and not found[-1][-1].alone:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def limit_of(waiting: Sequence[Sequence[Step]], left: float) -> float:
    """Seconds for the first of the waiting groups, of the seconds that are left: what others did not use is shared."""
    shares = [max(step.share for step in group) for group in waiting]
    return left * shares[0] / sum(shares)

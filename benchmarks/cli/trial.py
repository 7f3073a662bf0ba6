"""The verb `trial`: one trial in a process of its own, started by `run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.base.children import LESS_MEMORY
from benchmarks.base.errors import FAILED, GOES_ON, INTERRUPTED, GivenUpError, StarvedError, first_line
from benchmarks.machine.memory import is_out_of_memory
from benchmarks.training.ranks import Ranks
from benchmarks.trials.executors.alone import work_alone
from benchmarks.trials.rank import take_part
from benchmarks.trials.trial import draw_gallery, run_trial


def trial(options: argparse.Namespace) -> int:
    """Run one trial (started by `run`, or by a cluster), or be a rank of it (started by its first)."""
    folder, common = Path(options.folder), {"with_parent": options.with_parent, "data_hash": options.data_hash}
    if options.alone:
        return work_alone(folder, options.data_hash, options.ranks, options.plugin, options.with_parent)
    try:
        if options.rank:
            take_part(folder, Ranks(options.rank, options.ranks), options.port, **common)
            return 0
        if options.gallery:
            record = draw_gallery(folder, **common)
        else:
            record = run_trial(folder, **common, ranks=options.ranks, plugins=options.plugin)
    except GivenUpError as error:
        who = f"rank {options.rank} of {options.ranks}: " if options.rank else ""
        print(f"error: {who}{error}", file=sys.stderr)
        return GOES_ON if isinstance(error, StarvedError) else FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {first_line(error)}; {LESS_MEMORY}", file=sys.stderr)
        return FAILED
    return INTERRUPTED if record.status == "interrupted" else 0

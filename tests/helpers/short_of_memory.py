"""A plug-in that leaves the process of a trial SHORT_OF_MEMORY MiB beyond what it holds with everything imported.

It is the kernel that says no: RLIMIT_DATA counts what a process can write to and shares with none.
"""

import importlib
import os
import re
import resource
import sys
from pathlib import Path

FOR_A_TRIAL = ("benchmarks.trials.trial", "torch._dynamo")
"""What a trial imports; what its evaluation computes features with the second."""


def held() -> int:
    """Bytes that count against the limit."""
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


if sys.argv[1:2] == ["trial"]:
    for name in FOR_A_TRIAL:
        importlib.import_module(name)
    most = held() + (int(os.environ["SHORT_OF_MEMORY"]) << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))

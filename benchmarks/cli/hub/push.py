"""The verb `push`: an exported folder to the hub."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.base.errors import UserError, first_line
from benchmarks.base.extras import needed
from benchmarks.report.hub.card import CARD
from benchmarks.storage.tensors import HUB_WEIGHTS

REPO = re.compile(r"[\w.-]+/[\w.-]+")


def push(options: argparse.Namespace) -> int:
    """Upload what `export` wrote, to a repository that is made where it is missing.

    Raises:
        UserError: no such folder, a bad name, no package, nobody logged in, or what the hub answered.
    """
    folder = Path(options.folder)
    for name in (HUB_WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: expected a folder that `export` wrote, found no {name} in it")
    if not REPO.fullmatch(options.repo):
        raise UserError(f"expected a repository as OWNER/NAME, got '{options.repo}'")
    hub = needed("huggingface_hub", "push", "hub")
    if hub.get_token() is None:
        raise UserError("push: expected somebody logged in to the hub, found no token; hf auth login, or set HF_TOKEN")
    try:
        api = hub.HfApi()
        api.create_repo(options.repo, private=options.private, exist_ok=True)
        api.upload_folder(repo_id=options.repo, folder_path=folder, commit_message="Upload by vaebench")
    except Exception as error:  # of the network, of the hub, or of its package
        raise UserError(f"push: the hub did not take it: {first_line(error)}; try again") from error
    print(f"{folder} is at https://huggingface.co/{options.repo}", file=sys.stderr)
    return 0

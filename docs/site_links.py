"""A hook of MkDocs: links from docs/ into the rest of the repository.

On GitHub and on disk they are relative. The site has no such files: there they lead to `repo_url` of mkdocs.yml, or are
plain text where it is not set. A file that does not exist is a warning, which stops a strict build.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)#]+)(?P<anchor>#[^)]*)?\)")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page's text with its links out of docs/ made ones of the site."""
    return LINK.sub(replacer(page.file.src_uri, config.repo_url), markdown)


def replacer(page: str, repository: str | None) -> Callable[[re.Match[str]], str]:
    """What stands in place of a link on `page`: the same text, linked where there is a `repository` to link to."""

    def replaced(link: re.Match[str]) -> str:
        if not (ROOT / link["path"]).exists():
            log.warning("%s: expected a file of the repository, got a link to %s", page, link["path"])
        if repository is None:
            return link["text"]
        return f"[{link['text']}]({repository.rstrip('/')}/blob/main/{link['path']}{link['anchor'] or ''})"

    return replaced

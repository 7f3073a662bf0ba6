"""Puts a run's tables into a page between two markers: python -m benchmarks.report.readme OUT [PAGE]."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.base.errors import UserError
from benchmarks.base.files import write_text_atomically

START = "<!-- table: written by python -m benchmarks.report.readme -->"
END = "<!-- end of table -->"
FIGURES = ("samples", "reconstructions")


def block(out: Path) -> str:
    """The tables of the run in `out`, and its pictures by paths below the page's folder."""
    table = (out / "table.md").read_text(encoding="utf-8").strip()
    pictures = "\n".join(f"![{name}]({(out / 'figures' / name).as_posix()}.png)" for name in FIGURES)
    return f"{START}\n\n{table}\n\n{pictures}\n\n{END}"


def embed(out: Path, page: Path) -> None:
    """Replace what stands between the markers of `page`.

    Raises:
        UserError: no markers in the page, or no tables in `out`.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{page}: expected the markers '{START}' and '{END}'; add them where the table belongs")
    if not (out / "table.md").exists():
        raise UserError(f"{out}: expected table.md; run `python -m benchmarks report {out}` first")
    head, tail = text.partition(START)[0], text.partition(END)[2]
    write_text_atomically(page, head + block(out) + tail)


def main(arguments: list[str]) -> int:
    """Embed; returns the exit code."""
    try:
        if len(arguments) not in (1, 2):
            raise UserError(f"expected OUT and perhaps PAGE, got {len(arguments)} arguments")
        embed(Path(arguments[0]), Path(arguments[1] if len(arguments) == 2 else "README.md"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

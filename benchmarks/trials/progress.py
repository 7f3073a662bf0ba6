"""How far the trials are, on stderr."""

from __future__ import annotations

import sys
import threading

from tqdm import tqdm


class Bars:
    """Progress on stderr: one bar a phase of a trial on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.printed: dict[str, int] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exc: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def update(self, name: str, phase: str, done: int, total: int) -> None:
        """Show that `name` has done `done` of `total` in `phase`."""
        key = f"{name}: {phase}"
        with self.lock:
            if self.live:
                self._draw(key, done, total)
            elif (quarter := 4 * done // max(1, total)) > self.printed.get(key, 0):
                self.printed[key] = quarter
                print(f"{key} {100 * done // total} %", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        with self.lock:
            tqdm.write(text, file=sys.stderr)

    def _draw(self, key: str, done: int, total: int) -> None:
        if key not in self.bars:
            self.bars[key] = tqdm(desc=key, total=total, file=sys.stderr, dynamic_ncols=True, leave=False)
        self.bars[key].update(done - self.bars[key].n)
        if done >= total:
            self.bars.pop(key).close()

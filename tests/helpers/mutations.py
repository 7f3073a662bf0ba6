"""Documents in which a few things are changed, gone, new or odd, made cheaply: some ten thousand a second.

Each function draws from `rng`, a `random.Random`. What is not changed is shared with the original, which nobody
may change.
"""

import math
import struct

ODD_TEXT = (
    "",
    "../..",
    "a/b",
    "\0",
    "\ud800",
    "\x1b[2J",
    "<script>",
    "$\\frac{",
    "=1+1",
    "**1**",
    "_x",
    "{row}",
    "%s",
    "\u2028",
    "１",
    "x" * 5000,
)
ODD_NUMBERS = (0, -1, 2**63, 10**400, 1e308, -1e100, 5e-324, math.nan, math.inf, -0.0)
ODD_PIECES = (
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "=",
    ".",
    "\\",
    "\n",
    "#",
    "NaN",
    "1e999",
    "null",
    "true",
    "[" * 3000,
)
SIGNS = "abcxyzABC0123456789_-. /\\\"'{}[]()<>$*=+|\n\té中\U0001f600\x07"


def word(rng, longest=8):
    """Text of a few characters, odd text among it."""
    if rng.random() < 0.2:
        return rng.choice(ODD_TEXT)
    return "".join(rng.choice(SIGNS) for _ in range(rng.randint(0, longest)))


def whole(rng):
    """A whole number of any size."""
    return rng.choice((-1, 1)) * rng.getrandbits(rng.choice((1, 3, 8, 32, 100)))


def real(rng):
    """A number of any size, of evenly spread bits or a plain one."""
    return struct.unpack("<d", rng.getrandbits(64).to_bytes(8, "little"))[0] if rng.random() < 0.5 else rng.random()


def scalar(rng):
    """Anything that holds nothing else."""
    kind = rng.randrange(6)
    makers = (word, whole, real, lambda rng: rng.choice(ODD_NUMBERS), lambda rng: rng.random() < 0.5, lambda rng: None)
    return makers[kind](rng)


def anything(rng, depth=3):
    """Any value that JSON and TOML can hold, and some that they cannot."""
    kind = rng.randrange(6) if depth else 0
    if kind == 4:
        return [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if kind == 5:
        return {word(rng): anything(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    return scalar(rng)


def like(rng, value):
    """A value of the type of `value`, so that most are read."""
    if isinstance(value, str):
        return word(rng)
    if isinstance(value, bool) or value is None:
        return rng.choice((None, True, False))
    if isinstance(value, int):
        return whole(rng)
    return rng.uniform(-1, 1) * 10.0 ** rng.randint(-30, 99) if isinstance(value, float) else anything(rng)


def like_or_not(rng, value):
    """A value of the same type, or anything."""
    return like(rng, value) if rng.random() < 0.5 else anything(rng)


def paths(table):
    """Where everything in nested tables and lists stands: keys from the top, (("models", "vae"), ...)."""
    items = table.items() if isinstance(table, dict) else enumerate(table)
    found = []
    for key, item in items:
        found.append((key,))
        if isinstance(item, (dict, list)):
            found += [(key, *rest) for rest in paths(item)]
    return found


def changed(rng, table, places, value=like_or_not):
    """`table` with one to three of its `places` gone, beside something new, or of another `value(rng, old)`."""
    for _ in range(rng.randint(1, 3)):
        table = _changed_at(rng, table, rng.choice(places), value)
    return table


def _changed_at(rng, table, path, value):
    key, rest = path[0], path[1:]
    if not _has(table, key):
        return table  # an earlier change took it away
    table = table.copy()
    kind = rng.randrange(4)
    if rest:
        table[key] = _changed_at(rng, table[key], rest, value)
    elif kind == 0:
        del table[key]
    elif kind == 1 and isinstance(table, dict):
        table[word(rng)] = anything(rng)
    else:
        table[key] = value(rng, table[key])
    return table


def _has(table, key):
    """Whether something stands in a table or a list at `key`."""
    if isinstance(table, list):
        return isinstance(key, int) and key < len(table)
    return isinstance(table, dict) and key in table


def spoiled(rng, text):
    """`text` with one to three pieces gone, doubled, overwritten or put in."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice((1, 1, 2, 8, 40, len(text))))
        kind = rng.randrange(5)
        middle = (
            "" if kind == 0
            else text[start:end] * 2 if kind == 1
            else str(scalar(rng)) if kind == 2
            else rng.choice(ODD_PIECES) if kind == 3
            else rng.choice(ODD_PIECES) + text[start:end]
        )  # fmt: skip
        text = text[:start] + middle + text[end:]
    return text

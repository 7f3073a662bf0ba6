"""Conditions over measured values, for CI: `nvae.fid > 1.05 * base.fid`. Numbers and comparisons only, no code."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.base.errors import UserError, unknown
from benchmarks.records.catalogue import METRICS
from benchmarks.report.rows import Row

SHORT = {
    "fid": "sample_fid",
    "rfid": "reconstruction_fid",
    "iwae": "iwae_bound",
    "bpd": "bits_per_dim",
    "inception": "inception_score",
    "seconds": "training_seconds",
    "images": "training_images",
}
"""Metrics by shorter names."""
PARTS = ("low", "high", "n")
"""What a metric has besides its value."""
LONGEST = 500
ARITHMETIC: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: dict[type[ast.AST], Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
SIGNS: dict[type[ast.AST], Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}


@dataclass(frozen=True)
class Condition:
    """A condition over rows, by the names they have in it."""

    text: str
    rows: Mapping[str, Row]

    def holds(self) -> bool:
        """Whether it holds.

        Raises:
            UserError: no condition, an unknown name, a metric without a value.
        """
        if len(self.text) > LONGEST:
            raise UserError(f"--fail-if: expected at most {LONGEST} characters, got {len(self.text)}; split it in two")
        try:
            parsed = ast.parse(self.text.strip(), mode="eval").body
            return self._truth(parsed)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._refused(getattr(error, "msg", None) or "text that cannot be read") from error
        except (ZeroDivisionError, OverflowError) as error:
            raise self._refused(str(error)) from error

    def _truth(self, node: ast.expr) -> bool:
        """A comparison, or several joined by `and`, `or`, `not`."""
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(part) for part in node.values]
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._truth(node.operand)
        if isinstance(node, ast.Compare) and all(type(op) in COMPARISONS for op in node.ops):
            values = [self._number(part) for part in (node.left, *node.comparators)]
            steps = zip(node.ops, values, values[1:], strict=False)
            return all(COMPARISONS[type(op)](a, b) for op, a, b in steps)
        raise self._refused(f"'{ast.unparse(node)}'")

    def _number(self, node: ast.expr) -> float:
        """A number: written, measured, or reckoned."""
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return float(node.value)  # pyright: ignore[reportArgumentType]
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](self._number(node.left), self._number(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
            return SIGNS[type(node.op)](self._number(node.operand))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args and not node.keywords:
            return self._called(node.func.id, [self._number(part) for part in node.args])
        if isinstance(node, ast.Name | ast.Attribute):
            return self._measured(ast.unparse(node).split("."))
        raise self._refused(f"'{ast.unparse(node)}'")

    def _called(self, name: str, values: list[float]) -> float:
        """One of the functions of numbers."""
        if name not in FUNCTIONS:
            raise unknown("function of --fail-if", name, FUNCTIONS)
        if (len(values) == 1) != (name == "abs"):
            raise self._refused(f"{name} of {len(values)} numbers")
        return FUNCTIONS[name](*values)

    def _measured(self, words: list[str]) -> float:
        """The value that ROW.METRIC names, or ROW.METRIC.low, .high, .n."""
        part = "value"
        if len(words) > 2 and words[-1] in PARTS:
            part = words.pop()
        *names, metric = words
        name = ".".join(names)
        if not names:
            raise self._refused(f"'{metric}' alone")
        if name not in self.rows:
            raise unknown("row of --fail-if", name, self.rows)
        return self._value(self.rows[name], name, metric, part)

    def _value(self, row: Row, name: str, metric: str, part: str) -> float:
        """A part of the row's measurement of a metric."""
        full = SHORT.get(metric, metric)
        if full not in METRICS:
            raise unknown("metric of --fail-if", metric, {*SHORT, *METRICS})
        found = row.all(full)
        if len([one for one in found if one.value is not None]) > 1:
            raise UserError(f"--fail-if: {name}.{metric} has several values, of other extractors or K; compare one run")
        one = next((one for one in found if one.value is not None), found[0] if found else None)
        value = None if one is None else getattr(one, part)
        if value is None or not math.isfinite(value):
            why = "not measured" if one is None else one.note or f"no {part}"
            raise UserError(f"--fail-if: expected a value of {name}.{metric}, got none ({why}); choose another metric")
        return float(value)

    def _refused(self, found: str) -> UserError:
        """The error for what is no condition."""
        return UserError(
            f"--fail-if: expected a condition like 'nvae.fid > 1.05 * base.fid', got {found} in '{self.text}'"
        )

"""A trace held against ours, quantity by quantity, in the order in which they are computed.

A difference is the largest one between two arrays, as a share of the largest expected value of the
quantity (of a parameter's gradient or weights: of that parameter, and at least a thousandth of the largest of
all). What is allowed, and why:

- float64: 1e-9 of everything in the first ten meta-iterations. Rounding is 1e-16; the inner steps and Adam
  let it grow to 1e-12 or so. Later meta-iterations are not held to that, because rounding goes on growing.
- float32: losses and gradients as rounding of 1e-7 leaves them, with room for a ReLU or a pooling choice that
  falls otherwise. Adam's first steps have about the same length for every gradient, however small, so weights
  are held by how far they differ on the whole, as a share of how far they came, and after the first two
  meta-iterations alone: each lets rounding grow about threefold, in float64 too.
- Test accuracy: exact in float64 after ten meta-iterations at most, else within the 95 % interval of ours.
- A parameter whose true gradient is zero is held to be zero, or unmoved: Adam makes full steps of rounding
  noise.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..engine.evaluation import mean_and_interval
from .format import Export, Trace

EXACT_ITERATIONS = 10
ROUNDED_ITERATIONS = 2  # in float32
LOSS, GRADIENT, WEIGHTS = "loss", "gradient", "weights"
ALLOWED = {
    "float64": {LOSS: 1e-9, GRADIENT: 1e-9, WEIGHTS: 1e-9},
    "float32": {LOSS: 1e-3, GRADIENT: 1e-2, WEIGHTS: 5e-2},
}
LEAST_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantity of a trace beside ours.

    Args:
        quantity: its name.
        difference: how far the two are apart.
        allowed: how far they may be; None where nothing is held.
        where: the parameter where they differ most, or what else is to be said.
    """

    quantity: str
    difference: float
    allowed: float | None
    where: str = ""

    @property
    def agrees(self) -> bool:
        return self.allowed is None or self.difference <= self.allowed


def compare(export: Export, expected: Trace, trace: Trace) -> list[Row]:
    """The quantities of a trace beside the expected ones, in the order of computation."""
    allowed, rows = ALLOWED[expected.about["dtype"]], []
    ours, theirs = expected.arrays, trace.arrays
    for step in range(export.about["inner_steps"] + 1):
        for name in ("support_loss", "query_loss"):
            pair = ours[name][:, step], theirs[name][:, step]
            rows.append(Row(f"{name} after {step} inner steps", _difference(*pair), allowed[LOSS]))
    rows.append(_by_parameter(export, "gradient", ours, theirs, allowed[GRADIENT]))
    for count in export.about["weights_after"]:
        group = f"weights_after_{count}"
        if expected.about["dtype"] == "float64":
            rows.append(_by_parameter(export, group, ours, theirs, allowed[WEIGHTS]))
        else:
            held = allowed[WEIGHTS] if count <= ROUNDED_ITERATIONS else None
            rows.append(_by_way(export, group, ours, theirs, held))
        rows.append(_unmoved(export, group, theirs, allowed[WEIGHTS]))
    return rows + _curves(export, expected, trace, allowed[LOSS])


def _curves(export, expected, trace, allowed):
    """Losses and accuracies of training and test."""
    exact, rows = expected.about["dtype"] == "float64", []
    ours, theirs = expected.arrays, trace.arrays
    for name in ("loss", "accuracy"):
        held = _difference(ours[name][:EXACT_ITERATIONS], theirs[name][:EXACT_ITERATIONS])
        rows.append(Row(f"{name} of the first meta-iterations", held, allowed if exact else None))
        rest = ours[name][EXACT_ITERATIONS:], theirs[name][EXACT_ITERATIONS:]
        if len(rest[0]):
            rows.append(Row(f"{name} of the later ones", _difference(*rest), None))
    exact = exact and export.about["iterations"] <= EXACT_ITERATIONS
    difference = _difference(ours["test_loss"], theirs["test_loss"])
    rows.append(Row("test_loss", difference, allowed if exact else None))
    (mean, interval), (other, _) = (mean_and_interval(a["test_accuracy"]) for a in (ours, theirs))
    rows.append(
        Row(
            "test_accuracy, the mean",
            float(abs(mean - other)),
            allowed if exact else max(float(interval), allowed),
            f"{mean:.2%} +- {interval:.2%} and {other:.2%}",
        )
    )
    return rows


def _difference(ours, theirs, least=0.0):
    """The largest difference as a share of the largest expected value."""
    scale = max(float(np.abs(ours).max(initial=0.0)), least) or 1.0
    return float(np.abs(theirs.astype(np.float64) - ours).max(initial=0.0)) / scale


def _by_parameter(export, group, ours, theirs, allowed):
    names = list(export.shapes)
    largest = max(float(np.abs(ours[f"{group}/{name}"]).max()) for name in names)
    differences = {}
    for name in names:
        if name not in export.idle:
            pair = ours[f"{group}/{name}"], theirs[f"{group}/{name}"]
            differences[name] = _difference(*pair, least=LEAST_SHARE * largest)
        elif group == "gradient":  # compared as zero
            differences[name] = float(np.abs(theirs[f"{group}/{name}"]).max()) / largest
    worst = max(differences, key=differences.get)
    return Row(group, differences[worst], allowed, worst)


def _by_way(export, group, ours, theirs, allowed):
    """Weights held as a whole: the length of their difference as a share of the length of the way that they
    came."""
    names = [name for name in export.shapes if name not in export.idle]
    pairs = [(ours[f"{group}/{name}"], theirs[f"{group}/{name}"], export.weights[name]) for name in names]
    apart = sum(np.sum((a.astype(np.float64) - b) ** 2) for a, b, _ in pairs)
    way = sum(np.sum((a.astype(np.float64) - start) ** 2) for a, _, start in pairs)
    return Row(group, float(np.sqrt(apart / way)) if way else float(np.sqrt(apart)), allowed, "as a whole")


def _unmoved(export, group, theirs, allowed):
    """The parameters that have no gradient, held against their initial values."""
    moves = {
        name: float(np.abs(theirs[f"{group}/{name}"].astype(np.float64) - export.weights[name]).max())
        for name in sorted(export.idle)
    }
    worst = max(moves, key=moves.get)
    return Row(f"{group}, without a gradient", moves[worst], allowed, f"{worst}, which should not move")


def report(rows: list[Row]) -> str:
    """The rows as text, and a sentence on where the two first part."""
    width = max(len(row.quantity) for row in rows)
    lines = []
    for row in rows:
        verdict = "not held" if row.allowed is None else "agrees" if row.agrees else "DIFFERS"
        allowed = "-" if row.allowed is None else f"{row.allowed:.1e}"
        line = f"{row.quantity:{width}}  {row.difference:8.1e}  {allowed:>7}  {verdict:8}  {row.where}"
        lines.append(line.rstrip())
    head = f"{'quantity':{width}}  differs   allowed"
    first = next((row for row in rows if not row.agrees), None)
    if first is None:
        return "\n".join([head, *lines, f"The two agree; the largest difference is {largest(rows):.1e}."])
    where = f" ({first.where})" if first.where else ""
    said = f"The two first part in {first.quantity}{where}, by {first.difference:.1e}"
    return "\n".join([head, *lines, f"{said}; {first.allowed:.1e} is allowed."])


def largest(rows: list[Row]) -> float:
    """The largest difference of what is held."""
    return max(row.difference for row in rows if row.allowed is not None)

"""Traces of many implementations as one table and one picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..engine.evaluation import mean_and_interval
from ..errors import UserError
from ..files import write_whole
from ..report.pictures import draw_plots, png
from .format import DTYPES, ORDERS, Trace, expected_name, read_expected, read_export, read_trace
from .verify import compare, largest

TRACES = "traces"  # the folder in an export that holds them
SMOOTHED = 10  # meta-iterations that a point of the picture is the mean of


def collect(folders: list[str]) -> dict[str, dict[tuple[int, str], list[tuple[Trace, float | None]]]]:
    """The traces of exports: for each reader, by (order, dtype), pairs of the trace and its largest
    difference from ours, None for ours.

    Args:
        folders: exports, each with traces/*.npz from readers, and our own traces.
    Raises:
        UserError: an export or a trace is damaged, or there are no traces.
    """
    found = {}
    for folder in folders:
        export = read_export(folder)
        own = [Path(folder, expected_name(order, dtype)) for order in ORDERS for dtype in DTYPES]
        paths = [path for path in own if path.is_file()] + sorted(Path(folder, TRACES).glob("*.npz"))
        for path in paths:
            trace = read_trace(path, export)
            kind, difference = (trace.about["order"], trace.about["dtype"]), None
            if path not in own:
                difference = largest(compare(export, read_expected(folder, export, *kind), trace))
            reader = trace.about.get("reader") or trace.about["framework"]
            found.setdefault(reader, {}).setdefault(kind, []).append((trace, difference))
    if not found:
        raise UserError(f"There are no traces in {', '.join(folders)}: let the readers write into {TRACES}/.")
    return found


def table(folders: list[str]) -> str:
    """A table in Markdown, a line for each reader: versions, the largest difference in float64, and accuracy,
    seconds and memory in float32, where there is a trace of that kind. Of several, the one with most
    meta-iterations counts for the latter."""
    head = ["framework", "reader (lines)"]
    for order in ORDERS:
        head.append(f"largest difference, float64, order {order}")
    for order in ORDERS:
        head += [f"accuracy, %, order {order}", f"s, order {order}", f"MiB, order {order}"]
    lines = [head, ["---"] * len(head)]
    for reader, traces in collect(folders).items():
        about = next(iter(traces.values()))[0][0].about
        count = f" ({about['lines']})" if isinstance(about.get("lines"), int) else ""
        line = [f"{about['framework']} {about['framework_version']}", reader + count]
        for order in ORDERS:
            differences = [d for _, d in traces.get((order, "float64"), []) if d is not None]
            line.append(f"{max(differences):.0e}" if differences else "")
        for order in ORDERS:
            line += _figures([trace for trace, _ in traces.get((order, "float32"), [])])
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(traces):
    """Accuracy, seconds of a meta-iteration and memory of the longest of some traces, as texts."""
    if not traces:
        return ["", "", ""]
    trace = max(traces, key=lambda trace: len(trace.arrays["loss"]))
    mean, interval = mean_and_interval(100 * trace.arrays["test_accuracy"])
    seconds = np.median(trace.arrays["seconds"][1:] if len(trace.arrays["seconds"]) > 1 else [np.nan])
    memory = trace.about.get("memory_bytes")
    return [
        f"{mean:.2f} ± {interval:.2f}",
        f"{seconds:.3g}",
        f"{memory / 2**20:.0f}" if isinstance(memory, int) and memory else "",
    ]


def draw(folders: list[str], path: str | os.PathLike) -> None:
    """Write the query losses and accuracies of training in float32 as a picture: a column for each order."""
    panels = []
    for quantity in ("loss", "accuracy"):
        for order in ORDERS:
            lines = {}
            for traces in collect(folders).values():
                for trace, _ in traces.get((order, "float32"), []):
                    values = trace.arrays[quantity]
                    blocks = [values[i : i + SMOOTHED] for i in range(0, len(values), SMOOTHED)]
                    points = [(SMOOTHED * (i + 1), float(b.mean())) for i, b in enumerate(blocks)]
                    lines[trace.about["framework"]] = points
            panels.append((f"{quantity} of the query sets, order {order}", lines, 0))
    write_whole(path, png(draw_plots(panels, columns=len(ORDERS))))

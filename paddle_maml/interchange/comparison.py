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
    """A table in Markdown, a line for each reader: versions; the largest difference in float64; in float32
    the accuracy after each number of meta-iterations, and seconds and memory of the longest run."""
    readers = collect(folders)
    lengths = sorted(
        {_length(trace) for traces in readers.values() for trace in _of(traces, ORDERS, "float32")}
    )
    head = ["framework", "reader (lines)"]
    head += [f"largest difference, float64, order {order}" for order in ORDERS]
    head += [f"accuracy after {length}, %, order {order}" for length in lengths for order in ORDERS]
    head += [f"{figure}, order {order}" for figure in ("s", "MiB") for order in ORDERS]
    lines = [head, ["---"] * len(head)]
    for reader, traces in readers.items():
        about = next(iter(traces.values()))[0][0].about
        count = f" ({about['lines']})" if isinstance(about.get("lines"), int) else ""
        line = [f"{about['framework']} {about['framework_version']}", reader + count]
        for order in ORDERS:
            differences = [d for _, d in traces.get((order, "float64"), []) if d is not None]
            line.append(f"{max(differences):.0e}" if differences else "")
        line += [_accuracy(_of(traces, [order], "float32"), length) for length in lengths for order in ORDERS]
        longest = [_longest(traces, order) for order in ORDERS]
        line += [figure(trace) if trace else "" for figure in (_seconds, _memory) for trace in longest]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of(traces, orders, dtype):
    return [trace for order in orders for trace, _ in traces.get((order, dtype), [])]


def _longest(traces, order):
    """Of a reader's traces in float32 that of most meta-iterations, or None."""
    return max(_of(traces, [order], "float32"), key=_length, default=None)


def _length(trace):
    """The meta-iterations of a trace."""
    return len(trace.arrays["loss"])


def _accuracy(traces, length):
    trace = next((trace for trace in traces if _length(trace) == length), None)
    if trace is None:
        return ""
    mean, interval = mean_and_interval(100 * trace.arrays["test_accuracy"])
    return f"{mean:.2f} ± {interval:.2f}"


def _seconds(trace):
    """Those of a meta-iteration, the median; the first one, with what is made once, is left out."""
    seconds = trace.arrays["seconds"][1:]
    return f"{np.median(seconds):#.3g}" if len(seconds) else ""


def _memory(trace):
    memory = trace.about.get("memory_bytes")
    return f"{memory / 2**20:.0f}" if isinstance(memory, int) and memory else ""


def draw(folders: list[str], path: str | os.PathLike) -> None:
    """Write the query losses and accuracies of training in float32 as a picture: a column for each order."""
    panels, readers = [], collect(folders)
    for quantity in ("loss", "accuracy"):
        for order in ORDERS:
            lines = {}
            for traces in readers.values():
                trace = _longest(traces, order)
                if trace is None:
                    continue
                values = trace.arrays[quantity]
                blocks = [values[i : i + SMOOTHED] for i in range(0, len(values), SMOOTHED)]
                points = [
                    (min(SMOOTHED * (i + 1), len(values)), float(b.mean())) for i, b in enumerate(blocks)
                ]
                lines[trace.about["framework"]] = points
            panels.append((f"{quantity} of the query sets, order {order}", lines, 0))
    write_whole(path, png(draw_plots(panels, columns=len(ORDERS))))

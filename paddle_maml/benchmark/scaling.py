"""This library's time and memory against tasks, inner steps, n_way and processes."""

from __future__ import annotations

import dataclasses
from typing import Callable, Sequence

from ..engine.settings import Settings
from ..files import write_whole
from ..report.pictures import draw_plots, png
from .contestants import OURS, SIDES, Contestant
from .measure import LossCheck, make_problem, measure

TASKS, INNER_STEPS, N_WAY, PROCESSES = "tasks", "inner steps", "n_way", "processes"
_SETTINGS = {TASKS: "meta_batch", INNER_STEPS: "inner_steps", N_WAY: "n_way"}


def sweeps(settings: Settings) -> dict[str, list[int]]:
    """The values of each quantity; the others stay at their settings, with one process."""
    return {
        TASKS: _doubling(settings.meta_batch),
        INNER_STEPS: [1, 2, 5, 10, 20],
        N_WAY: [2, 5, 10, 20],
        PROCESSES: _doubling(settings.processes),
    }


def _doubling(last):
    """1, 2, 4 and so on, and the last."""
    return sorted({1 << power for power in range(last.bit_length())} | {last})


def scale(
    settings: Settings,
    values: dict[str, list[int]],
    orders: Sequence[int],
    threads: int,
    device: str,
    warmup: int,
    repeat: int,
    announce: Callable[[str], None],
) -> list[dict]:
    """Measure every value of every quantity.

    Args:
        settings: `Settings` of all that is not varied.
        values: dict from quantity to values, as `sweeps` returns.
        orders: of the meta-gradient.
        threads: of each process.
        device, warmup, repeat: as `measure`.
        announce: takes a line before each measurement.

    Returns:
        Rows of `measure`, with quantity and value. A point that lies in two sweeps is measured once.
    """
    measured, rows = {}, []
    for quantity, points in values.items():
        for value in points:
            point = (
                dataclasses.replace(settings, **{_SETTINGS[quantity]: value})
                if quantity in _SETTINGS
                else settings
            )
            for order in orders:
                contestant = Contestant(
                    OURS, SIDES[OURS].variants[0], order, value if quantity == PROCESSES else 1, threads
                )
                if (point, contestant) not in measured:
                    announce(f"measuring {quantity} {value}, order {order}")
                    problem, _ = make_problem(point)
                    [measured[point, contestant]] = measure(
                        [contestant], problem, device, LossCheck(), warmup, repeat
                    )
                rows.append({"quantity": quantity, "value": value, **measured[point, contestant]})
    return rows


def draw(rows: list[dict], path: str) -> None:
    """Write the rows of `scale` as a picture: time above, memory below, a column for each quantity."""
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    panels = []
    for measure_name, title, unit in (
        ("median_s", "seconds a meta-iteration", 1),
        ("peak_memory_bytes", "peak memory above imports, MiB", 1 << 20),
    ):
        for quantity in quantities:
            lines = {}
            for row in rows:
                if row["quantity"] == quantity and row[measure_name] is not None:
                    lines.setdefault(f"order {row['order']}", []).append(
                        (row["value"], row[measure_name] / unit)
                    )
            panels.append((f"{quantity}: {title}", lines, 0))
    write_whole(path, png(draw_plots(panels, columns=len(quantities))))

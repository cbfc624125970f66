"""The command line of the benchmark, its tables and its JSON report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import sys

from ..commands.command_line import CommandLine, list_of
from ..commands.running import run_command
from ..engine.device import cores, import_paddle, select_device
from ..engine.settings import settings_from_dict
from ..errors import UserError
from ..files import check_target
from ..report.tables import write_json
from .contestants import OPPONENTS, OURS, SIDES, candidates
from .worker import TURN

_TASK = (
    "n_way",
    "k_shot",
    "k_query",
    "meta_batch",
    "inner_steps",
    "inner_lr",
    "width",
    "device",
    "processes",
    "chunk",
    "seed",
)
_OPTIONS = {
    "meta_batch": ("--tasks", "episodes in a meta-batch"),
    "inner_steps": ("--steps", "gradient steps on the support set"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; arguments and exit status as `cli.main_train`."""
    return run_command(_benchmark, sys.argv[1:] if arguments is None else arguments)


def _benchmark(arguments):
    parser = _parser()
    given = parser.parse(arguments)
    options = argparse.Namespace(**{name: given.pop(name) for name in list(given) if name not in _TASK})
    settings = settings_from_dict(given)
    _check(options)
    import_paddle()
    device = select_device(settings.device)
    settings = dataclasses.replace(settings, processes=_processes(settings, device))
    options.threads = options.threads or max(1, cores() // settings.processes)

    report = {
        "command": "python -m paddle_maml.benchmark " + " ".join(arguments),
        "machine": _machine(device, options.against),
        "settings": _task(settings),
        "threads": options.threads,
        "tuned_opponents": options.tune_opponents,
        "warmup": options.warmup,
        "repeat": options.repeat,
        "turn": TURN,
    }
    _say(_heading(report))
    report.update((_scaling if options.scaling else _comparison)(settings, options, device))
    if options.json:
        write_json(options.json, report)


def _parser():
    parser = CommandLine(
        prog="python -m paddle_maml.benchmark",
        description="Time of a meta-iteration, against other implementations where wanted. Episodes are of "
        "drawn characters, which need no download and take the same time.",
    )
    parser.add_argument(
        "--against",
        type=list_of(OPPONENTS),
        default=[],
        metavar="SIDES",
        help="opponents, of " + ",".join(OPPONENTS) + "; default: none, this library alone",
    )
    parser.add_argument(
        "--tune-opponents",
        action="store_true",
        help="give opponents the memory allocator's settings that this library makes for itself; without, "
        "they get only what has MKL use all of an AMD processor",
    )
    parser.add_argument(
        "--orders",
        type=list_of((1, 2), int),
        default=[1, 2],
        help="orders of the meta-gradient (default 1,2)",
    )
    parser.add_argument("--warmup", type=int, default=1, help="turns that do not count (default 1)")
    parser.add_argument("--repeat", type=int, default=5, help="turns that count (default 5)")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of a process; default: cores / processes. Opponents also try 1 process with all of "
        "them",
    )
    parser.add_argument(
        "--scaling",
        nargs="?",
        const="scaling.png",
        metavar="PNG",
        help="instead: time and memory against tasks, steps, n_way and processes, as table and picture "
        "(default scaling.png)",
    )
    parser.add_argument("--json", metavar="PATH", help="also write all figures to this file")
    parser.add_settings(_TASK, _OPTIONS)
    return parser


def _check(options):
    for name, least, most in (("warmup", 0, 10**6), ("repeat", 1, 10**6), ("threads", 1, 1024)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}, but must be {least} to {most}.")
    if options.json is not None:
        check_target(options.json, "--json")
    if options.scaling is not None:
        check_target(options.scaling, "--scaling")
        if not options.scaling.lower().endswith(".png"):
            raise UserError(
                f"--scaling is {options.scaling}, but the picture is a PNG: let its name end in .png."
            )
    for side in options.against:
        for package in SIDES[side].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--against {side} needs {package}, which is not installed: {SIDES[side].install}, or "
                    f"leave {side} out."
                )


def _processes(settings, device):
    """How many processes this library computes with."""
    if device != "cpu" and (settings.processes or 1) > 1:
        raise UserError(
            f"--processes is {settings.processes}, but on a GPU the benchmark runs one process; leave it "
            "out or choose --device cpu."
        )
    if (settings.processes or 1) > settings.meta_batch:
        raise UserError(
            f"--processes is {settings.processes}, but there are only {settings.meta_batch} tasks to "
            "divide; lower it or raise --tasks."
        )
    return settings.processes or (min(cores(), settings.meta_batch) if device == "cpu" else 1)


# ---- the two kinds of run ----


def _comparison(settings, options, device):
    from .limit import product_rate, share_of_the_limit
    from .measure import LossCheck, fastest, make_problem, measure, ratios

    problem, building = make_problem(settings)
    check, finalists, heats = LossCheck(), [], []
    for order in options.orders:
        for side in [OURS, *options.against]:
            if order not in SIDES[side].orders:
                _say(f"{side} has no order {order}.")
                continue
            choice = candidates(side, order, settings.processes, options.threads, options.tune_opponents)
            contestant, rows = fastest(choice, problem, device, announce=_say)
            finalists.append(contestant)
            heats += rows
    results = measure(finalists, problem, device, check, options.warmup, options.repeat)
    found = ratios(results)
    print(_table(results))
    print("\n".join(_ratio_line(ratio) for ratio in found))
    share = building / min(row["median_s"] for row in results if row["side"] == OURS)
    print(
        f"Building the episodes takes {building:.3f} s, {share:.1%} of the fastest meta-iteration of ours; "
        "training does it in the background."
    )
    limits = []
    if device == "cpu":
        rate, used = product_rate(), settings.processes * options.threads
        for row in results:
            if row["side"] == OURS:
                limits.append(share_of_the_limit(settings, row["order"], row["median_s"], rate, used))
                print(_limit_line(limits[-1]))
    return {
        "heats": heats,
        "results": results,
        "ratios": found,
        "limits": limits,
        "episode_building_s": building,
    }


def _scaling(settings, options, device):
    from . import scaling

    rows = scaling.scale(
        settings,
        scaling.sweeps(settings),
        options.orders,
        options.threads,
        device,
        options.warmup,
        options.repeat,
        announce=_say,
    )
    print(_table(rows, [("quantity", lambda row: row["quantity"]), ("value", lambda row: str(row["value"]))]))
    scaling.draw(rows, options.scaling)
    print(f"picture: {options.scaling}")
    return {"scaling": rows}


# ---- what the reader sees ----


def _say(line):
    print(line, flush=True)


def _task(settings):
    return {name: getattr(settings, name) for name in _TASK}


def _machine(device, opponents):
    """What the figures belong to. The load tells whether the machine had other work."""
    from ..engine.assembly import environment

    packages = dict.fromkeys(package for side in opponents for package in SIDES[side].packages)
    return {
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "packages": {package: importlib.metadata.version(package) for package in packages},
        **environment(device),
    }


def _heading(report):
    task, machine = report["settings"], report["machine"]
    packages = "".join(f", {package} {version}" for package, version in machine["packages"].items())
    return (
        f"{task['n_way']}-way {task['k_shot']}-shot, {task['k_query']} query images a class, "
        f"{task['meta_batch']} tasks, "
        f"{task['inner_steps']} inner steps\n{machine['processor']}, {machine['cores']} cores, device "
        f"{machine['device']}, "
        f"Paddle {machine['paddle']}{packages}, Python {machine['python']}\n"
        f"medians of {report['repeat']} turns of {TURN} meta-iterations after {report['warmup']} to warm up"
        + (", opponents with this library's allocator settings" if report["tuned_opponents"] else "")
    )


_COLUMNS = [
    ("order", lambda row: str(row["order"])),
    ("code", lambda row: f"{row['side']} ({row['variant']})"),
    ("processes x threads", lambda row: f"{row['processes']} x {row['threads']}"),
    (
        "seconds (least - most)",
        lambda row: f"{row['median_s']:.3f} ({row['min_s']:.3f} - {row['max_s']:.3f})",
    ),
    ("meta-iterations/s", lambda row: f"{row['meta_iterations_per_s']:.3g}"),
    ("episodes/s", lambda row: f"{row['episodes_per_s']:.3g}"),
    (
        "memory MiB",
        lambda row: "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:.0f}",
    ),
    ("loss", lambda row: f"{row['loss']:.6f}"),
]


def _table(rows, columns=()):
    """Rows of `measure` as text, with further columns before the usual ones."""
    columns = [*columns, *_COLUMNS]
    cells = [[title for title, _ in columns]] + [[read(row) for _, read in columns] for row in rows]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells
    )


def _ratio_line(ratio):
    (side, order), (other, other_order) = ratio["of"], ratio["to"]
    text = f"{ratio['ratio']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
    if side == other:
        return f"{side}: order {order} takes {text} times as long as order {other_order}"
    return f"order {order}: {side} takes {text} times as long as {other}"


def _limit_line(limit):
    return (
        f"order {limit['order']}: the convolutions are {limit['gflop']:.0f} GFLOP by their definition, "
        f"{limit['gflop_winograd']:.0f} by Winograd's algorithm; a core multiplies matrices at "
        f"{limit['core_gflop_per_s']:.0f} GFLOP/s: ours is at {limit['ratio']:.0%} of {limit['cores']} cores"
    )


if __name__ == "__main__":
    sys.exit(main())

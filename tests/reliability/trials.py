"""What the trials of this folder share: how many there are, what is asked of a refusal, and the figures."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Callable

from tiny_run import options

from paddle_maml.commands import cli

# RELIABILITY=full in the environment: all trials, as docs/reliability.md tells of; else a sample, as in CI.
FULL = os.environ.get("RELIABILITY") == "full"
FIGURES = Counter()
# Settings of a run whose checkpoints have every file that there is.
EVERYTHING = {"keep_best": 2, "average_weights": 0.9}


def some(full: int, few: int) -> int:
    """How many trials."""
    return full if FULL else few


def count(what: str, number: int = 1) -> None:
    """Add to a figure that is printed at the end."""
    FIGURES[what] += number


def assert_one_sentence(status: int, output: str, errors: str) -> None:
    """A refusal: status 2 and one sentence that says what to do, no traceback."""
    assert status == 2, (status, output, errors)
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "Traceback" not in output + errors


def assert_refused(capfd, command: Callable[[list], int], arguments: list[str]) -> str:
    """Call a command in this process, which is refused; returns its sentence."""
    capfd.readouterr()
    status = command(arguments)
    captured = capfd.readouterr()
    assert_one_sentence(status, captured.out, captured.err)
    return captured.err


def train(folder: str | Path, *flags: str, **changes: object) -> int:
    """A tiny run in this process; returns its exit status."""
    return cli.main_train([*options(output=folder, **{**EVERYTHING, **changes}), *flags])


def listing(folder: str | Path) -> dict[str, bytes | None]:
    """Everything in a folder, by path: files with their bytes, folders None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }

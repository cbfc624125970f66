"""What a run tells while it goes on: progress on the screen, metrics.csv, VisualDL."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
import sys
import time
from types import ModuleType
from typing import TextIO

import numpy as np

from ..errors import UserError
from ..files import discard, write_whole

METRICS = "metrics.csv"
# VisualDL's log in the run folder; it knows its files by the name.
VISUALDL = os.path.join("visualdl", "vdlrecords.log")
COLUMNS = (
    "iteration",
    "loss",
    "accuracy",
    "meta_lr",
    "val_loss",
    "val_accuracy",
    "val_interval",
    "episodes_per_second",
    "seconds",
)
# A meta-iteration, and numbers where there are some.
_ROW = re.compile(r"\d{1,12}" + (len(COLUMNS) - 1) * r"(,(-?\d+\.?\d*(e[-+]\d+)?)?)" + r"\r?", re.ASCII)


class Progress:
    """A progress line that stays in place on a terminal, and a log line now and then elsewhere.

    Paddle's own ProgressBar is not used: it counts the time left from the first iteration, which is wrong
    after a resume, and takes whatever is not a terminal for one.

    Args:
        total: meta-iterations of the whole run.
        start: meta-iterations done before.
        log_seconds: least time between two log lines where there is no terminal.
        stream: where to write; default the standard output.
    """

    BAR = 20

    def __init__(self, total: int, start: int = 0, log_seconds: float = 10.0, stream: TextIO | None = None):
        self._total, self._start = total, start
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._pause = 0.1 if self._terminal else log_seconds
        self._began, self._shown = time.monotonic(), 0.0
        self._open_line = False

    def update(
        self,
        iteration: int,
        loss: float,
        accuracy: float,
        episodes_per_second: float,
        score_name: str = "accuracy",
    ) -> None:
        """Show the state after a meta-iteration; most calls print nothing."""
        now = time.monotonic()
        if now - self._shown < self._pause and iteration < self._total:
            return
        self._shown = now
        left = (now - self._began) / (iteration - self._start) * (self._total - iteration)
        score = f"accuracy {accuracy:6.2%}  " if score_name == "accuracy" else ""
        text = (
            f"{iteration}/{self._total}  loss {loss:.4f}  {score}{episodes_per_second:.1f} episodes/s  "
            f"{_clock(left)} left"
        )
        if not self._terminal:
            self._write(text + "\n")
            return
        done = self.BAR * iteration // self._total
        text = "[" + "=" * done + "." * (self.BAR - done) + "] " + text
        # A line wider than the terminal would wrap, and "\r" would not reach its start.
        self._write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
        self._open_line = True

    def note(self, text: str) -> None:
        """Print a line of its own."""
        self.close()
        self._write(text + "\n")

    def close(self) -> None:
        """Leave the progress line as it stands."""
        if self._open_line:
            self._write("\n")
            self._open_line = False

    def _write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            if not self._terminal:
                raise
            # The terminal was closed. That is no end: SIGHUP says whether the run is to stop, and it saves.
            discard(self._stream)


class Silence:
    """What takes the place of `Progress` and `Metrics` in the processes that do not speak."""

    def _nothing(self, *args, **kwargs):
        pass

    update = note = add = describe = close = _nothing


def _clock(seconds):
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class Metrics:
    """metrics.csv in the run folder, and VisualDL's log beside it where wanted.

    Args:
        run_folder: an existing folder.
        iteration: the meta-iteration the run continues from; later rows, of a run that was killed, are
            removed.
        visualdl: also write RUN/visualdl, anew with the rows that are there: VisualDL shows one file of a
            folder, and can take nothing back. UserError if the package is missing.
    """

    def __init__(self, run_folder: str, iteration: int = 0, visualdl: bool = False):
        path = os.path.join(run_folder, METRICS)
        rows = [row for row in read_metrics(path) if int(row["iteration"]) <= iteration]
        self._writer = _visualdl_writer(run_folder) if visualdl else None
        write_whole(path, metrics_file(rows))
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._csv = csv.DictWriter(self._file, COLUMNS)
        for row in rows:
            self._add_to_visualdl(row)

    def describe(self, settings: dict, scores: list[str], pictures: dict[str, np.ndarray]) -> None:
        """Tell VisualDL, where it is wanted, what the run is.

        Args:
            settings: plain values by name: the hyper-parameters, which VisualDL sets against the scores.
            scores: columns.
            pictures: uint8 (H, W, 3) by name.
        """
        if self._writer:
            # Of bool and None its records know nothing.
            values = {
                name: int(value) if isinstance(value, bool) else value
                for name, value in settings.items()
                if value is not None
            }
            self._writer.add_hparams(values, scores)
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, 0)

    def add(self, **values: float) -> None:
        """Add a row: values by column name; columns left out stay empty. It is on the disk when this
        returns."""
        shown = {
            name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()
        }
        self._csv.writerow(shown)
        self._file.flush()
        # Before the next checkpoint: a resumed run must not lack rows.
        os.fsync(self._file.fileno())
        self._add_to_visualdl(shown)

    def _add_to_visualdl(self, row):
        """The numbers of metrics.csv, so that a resumed run writes what it wrote before."""
        if self._writer:
            for name, value in row.items():
                if name != "iteration" and value != "":
                    self._writer.add_scalar(name, float(value), int(row["iteration"]))

    def close(self) -> None:
        self._file.close()
        if self._writer:
            self._writer.close()


def _visualdl_writer(run_folder):
    path = os.path.join(run_folder, VISUALDL)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return require_visualdl().LogWriter(os.path.dirname(path), file_name=os.path.basename(path))


def metrics_file(rows: list[dict]) -> bytes:
    """The bytes of a metrics.csv with rows as `read_metrics` returns them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read_metrics(path: str) -> list[dict]:
    """The rows of a metrics.csv as dicts of strings; what a killed process or machine wrote of its last row
    is left out.

    Raises:
        UserError: another line is damaged.
    """
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
    del lines[-1]  # unfinished, or nothing
    if lines and "\0" in lines[-1]:
        del lines[-1]
    for number, line in enumerate(lines, 1):
        if not (_ROW.fullmatch(line) if number > 1 else line.rstrip("\r") == ",".join(COLUMNS)):
            raise UserError(
                f"{path} is damaged in line {number}: repair it, or move it away to go on without its rows."
            )
    return [dict(zip(COLUMNS, line.rstrip("\r").split(","))) for line in lines[1:]]


def require_visualdl() -> ModuleType:
    """The package visualdl; UserError if it is not installed."""
    try:
        import visualdl  # here, because few have it
    except ImportError as error:
        # Its pandas would take NumPy 2 along.
        raise UserError(
            "visualdl is wanted but not installed: pip install visualdl, with PaddlePaddle 2.6 pip install "
            "visualdl 'numpy<2'."
        ) from error
    return visualdl

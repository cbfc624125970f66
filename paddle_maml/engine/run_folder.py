"""The folder of a run: who may write to it, what is written, and how a run goes on from it.

A run may be killed at any moment: there is always a whole checkpoint set (checkpoint.py), and the log is
never without one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from typing import Any, Iterator

import numpy as np

from ..errors import UserError
from ..files import lock_folder, write_whole
from ..report.log import METRICS, VISUALDL, Metrics, Progress, Silence, read_metrics
from ..report.pictures import draw_curve, draw_episode_table, png, stacked
from ..report.tables import CURVE, REPORT, evaluation_table, score_key, score_text, write_json
from . import checkpoint
from .plain_data import read_plain_data
from .provenance import origin_of
from .settings import Settings, flag
from .signals import Interrupted, StopRequest
from .weights import WeightsFile, load_weights, optimizer_state, set_optimizer_state

# Of the environment: what decides the last bits of a result.
_DECIDES_BITS = ("paddle", "processor", "device", "native_kernel")
EPISODES_SHOWN = 4  # on a page of VisualDL


class NotFinite(Exception):
    """Training cannot go on: (meta-iteration, what is not a finite number). `RunFolder` says the rest."""


class RunFolder:
    """What a run keeps. Of a group of processes all read it, and rank 0 alone locks, writes and speaks.

    Args:
        trainer: a `Trainer` (training.py, which imports this module).
        environment: versions and device, as reports and checkpoints state them.
        stop: a `StopRequest`.
    """

    def __init__(self, trainer: Any, environment: dict, stop: StopRequest):
        self.trainer, self.environment, self.stop = trainer, environment, stop
        self.settings, self.ranks, self.path = trainer.settings, trainer.ranks, trainer.settings.run_folder
        self.metrics = self.progress = Silence()
        self.saved = None  # the state that the newest checkpoint has

    @contextlib.contextmanager
    def taken(self) -> Iterator[str | None]:
        """The folder is made and this process's alone; gives the checkpoint set that the run is to go on
        from, or None. A run that fails before its first step leaves nothing that would be in the way of the
        next try."""
        with contextlib.ExitStack() as held:
            made = self.ranks.leads and not os.path.isdir(self.path)
            if self.ranks.leads:
                os.makedirs(self.path, exist_ok=True)
                held.enter_context(lock_folder(self.path))
                refuse_other_run(self.settings)  # another process may have had it since the first look
                checkpoint.remove_leftovers(self.path)
            newest = checkpoint.newest_checkpoint(self.path) if self.settings.resume else None
            try:
                with contextlib.closing(self):
                    yield newest
            except Interrupted:
                raise
            except BaseException as failure:
                began = newest or self.trainer.state.iteration
                said = self._way_out(*failure.args, began) if isinstance(failure, NotFinite) else None
                if self.ranks.leads and not began:
                    self._remove(made)
                if said:
                    raise said from None
                raise

    def restore(self, path: str) -> str:
        """Take up a checkpoint set; returns a sentence on it.

        Raises:
            UserError: the set is damaged, or of a run with other settings.
        """
        trainer = self.trainer
        _, stored, settings, _ = checkpoint.read_set(path)
        self._refuse_other_settings(settings)
        average = [checkpoint.AVERAGE] if self.settings.average_weights else []
        contents = checkpoint.read_set(path, *checkpoint.FILES[:-1], *average, kept=True).files
        files = {name: WeightsFile(os.path.join(path, name), data) for name, data in contents.items()}
        listing = trainer.state.listing_sha256
        # Older runs do not say what they kept, and what they were trained on.
        stored = {"listing_sha256": "", "kept": [], **stored}
        stored["trained_on"] = origin_of(settings, stored).trained_on
        for field in dataclasses.fields(trainer.state):
            value = stored.get(field.name)
            if type(value) is not type(getattr(trainer.state, field.name)):
                raise UserError(f"{path} is damaged: {field.name} is {value!r}.")
            setattr(trainer.state, field.name, value)
        if trainer.state.listing_sha256 != listing:
            raise UserError(
                f"The images in {self.settings.folder} are not those that the run in {self.path} was started "
                "with, by their names and sizes: put those back, or start a new run."
            )
        done = trainer.state.iteration
        if done > self.settings.iterations:
            raise UserError(
                f"iterations is {self.settings.iterations}, but the run in {self.path} has done {done} "
                f"already: ask for more, or choose another folder with {flag('output')}."
            )
        self._restore_best(files)
        if average:
            load_weights(trainer.learner, files[checkpoint.AVERAGE])
            trainer.average = trainer.weights()
        load_weights(trainer.learner, files[checkpoint.WEIGHTS])
        if done:
            moments, data = files[checkpoint.OPTIMIZER]
            set_optimizer_state(trainer.optimizer, trainer.learner, read_plain_data(data, moments), moments)
        self.saved = (done, trainer.state.validated)
        before = stored.get("environment", {})
        others = [name for name in _DECIDES_BITS if before.get(name) != self.environment.get(name)]
        rounding = (
            f" What computes is not what did before ({', '.join(others)}), so the result is that of a run in "
            "one piece but for rounding, not to the bit."
        )
        return f"Continuing {self.path} after meta-iteration {done}.{rounding if others else ''}"

    def _restore_best(self, files):
        """Take up the weights of the best validation, and of those that are kept."""
        trainer, state = self.trainer, self.trainer.state

        def weights_in(file):
            load_weights(trainer.tested, file)
            return trainer.kept_weights()

        trainer.best = weights_in(files[checkpoint.BEST])
        if self.settings.keep_best == 1 or not state.validated:
            state.kept = []
        elif state.kept:
            state.kept = state.kept[: self.settings.keep_best]
            numbers = [one["iteration"] for one in state.kept]
            trainer.kept = {n: weights_in(files[checkpoint.KEPT.format(iteration=n)]) for n in numbers}
        else:  # the run has kept the best alone so far
            score, interval = state.best_accuracy, state.best_interval
            state.kept = [{"iteration": state.best_iteration, "score": score, "interval": interval}]
            trainer.kept = {state.best_iteration: trainer.best}

    def open(self, begins_with: str | None) -> None:
        """Save the first state and begin the log, with a sentence on where the run begins."""
        state, weights = self.trainer.state, self.trainer.weights()
        total = sum(float(np.abs(array).sum()) for array in weights.values())
        if not (self.ranks.agree(state.iteration) and self.ranks.agree(total)):
            raise UserError(
                f"The processes of the run start from different weights; the output folder {self.path} must "
                "be one that all of them see."
            )
        if not self.saved:
            self.save()  # before there is a log: the log of a run is never without a checkpoint
        if self.ranks.leads:
            self.metrics = Metrics(self.path, state.logged, self.settings.visualdl)
            if self.settings.visualdl:
                scores = self._without_accuracy(["loss", "val_loss", "accuracy", "val_accuracy"])
                self.metrics.describe(self.settings.as_dict(), scores, self._episode_pages())
            self.progress = Progress(self.settings.iterations, state.iteration)
        if begins_with:
            self.progress.note(begins_with)

    def _episode_pages(self):
        """The first episodes of training and validation as pictures, where they are of images."""
        pages = {}
        for name in ("training", "validation"):
            builder = self.trainer.episodes if name == "training" else self.trainer.val_episodes
            first = [builder[index] for index in range(EPISODES_SHOWN)]
            # Of sinusoids there are no images, and of learners that train without episodes none for training.
            if len(first[0]) == 4 and first[0][0].ndim == 4:
                pages[f"episodes/{name}"] = np.asarray(stacked([draw_episode_table(*one) for one in first]))
        return pages

    def log(self, **validation: float) -> None:
        """Add a row to metrics.csv, unless the meta-iteration has one."""
        state = self.trainer.state
        if state.logged < state.iteration:
            row = {"iteration": state.iteration, "meta_lr": state.meta_lr, "seconds": state.seconds}
            row.update(state.means(self.settings.meta_batch), **validation)
            self.metrics.add(**{name: row[name] for name in self._without_accuracy(row)})
        state.start_row()

    def _without_accuracy(self, columns):
        """The columns that the log has: the score of a regression is an error, which is no accuracy."""
        higher = self.trainer.learner.objective.higher_is_better
        return [name for name in columns if higher or "accuracy" not in name]

    def save(self) -> None:
        """Write a checkpoint set, unless the newest one has this state already or another rank does it."""
        trainer, state = self.trainer, self.trainer.state
        if self.saved == (state.iteration, state.validated) or not self.ranks.leads:
            return
        weights = trainer.weights()
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise NotFinite(state.iteration, "a weight is not a finite number")
        states = {
            **dataclasses.asdict(state),
            "settings": self.settings.as_dict(),
            "seed": self.settings.seed,
            "environment": self.environment,
        }
        best = trainer.best if state.validated else trainer.shown()  # until there is a validation
        moments = optimizer_state(trainer.optimizer, trainer.learner)
        checkpoint.write_checkpoint(
            self.path, state.iteration, weights, best, moments, states, trainer.average, trainer.kept
        )
        self.saved = (state.iteration, state.validated)

    def stop_if_asked(self) -> None:
        """Save and raise Interrupted if a signal came, to any of the processes."""
        if self.ranks.any(self.stop.requested):
            self.save()
            # Nobody leaves before the checkpoint is whole: the end of one process ends the others.
            self.ranks.any(False)
            raise Interrupted(
                f"Stopped after meta-iteration {self.trainer.state.iteration}; continue with: python "
                f"train.py --resume --output {shlex.quote(self.path)}"
            )

    def report(self, test: dict) -> dict:
        """Write and return the report of a run that has come to its end, whose test is described."""
        state, path = self.trainer.state, os.path.join(self.path, REPORT)
        report = {
            "test": test,
            "validation": {
                score_key(test): state.best_accuracy,
                "interval": state.best_interval,
                "episodes": self.settings.val_episodes,
                "iteration": state.best_iteration,
            },
            **({"kept": state.kept} if state.kept else {}),
            "start_sha256": state.start_sha256 or None,
            "listing_sha256": state.listing_sha256 or None,
            "trained_on": state.trained_on,
            "iterations": state.iteration,
            "training_seconds": round(state.seconds, 1),
            "processes": self.ranks.size,
            "seed": self.settings.seed,
            "environment": self.environment,
            "settings": self.settings.as_dict(),
        }
        if self.ranks.leads:
            write_json(path, report)
            curve = draw_curve(read_metrics(os.path.join(self.path, METRICS)))
            write_whole(os.path.join(self.path, CURVE), png(curve))
        self.progress.note(evaluation_table(test))
        self.progress.note(
            f"Weights of meta-iteration {state.best_iteration}, the best of validation "
            f"({score_text(test, state.best_accuracy)}). Report: {path}"
        )
        return report

    def close(self) -> None:
        """End the log."""
        self.progress.close()
        self.metrics.close()

    def _refuse_other_settings(self, before):
        """UserError if the run was started with settings that a resumed run cannot change."""
        now = self.settings
        for field in dataclasses.fields(Settings):
            old, new = (getattr(settings, field.name) for settings in (before, now))
            if field.name == "dataset" and before.of_folder and now.of_folder:
                continue  # a folder may have moved: `restore` looks at what is in it
            if old != new and not field.metadata["may_change"]:
                old, new = ("none" if value is None else value for value in (old, new))
                raise UserError(
                    f"{flag(field.name)} is {new}, but the run in {self.path} was started with {old}; a "
                    "resumed run cannot change it."
                )
        if now.meta_lr_schedule != "constant" and now.iterations != before.iterations:
            raise UserError(
                f"{flag('iterations')} is {now.iterations}, but the meta rate of the run in {self.path} "
                f"falls to 0 at {before.iterations}; a resumed run cannot change it: train further in "
                f"another folder, with {flag('start_from')} {shlex.quote(self.path)}."
            )

    def _way_out(self, iteration, what, began):
        why = f"Stopped at meta-iteration {iteration}, because {what}"
        if not began:
            return UserError(f"{why}: lower inner_lr or meta_lr.")
        return UserError(
            f"{why}; the last good checkpoint is {checkpoint.newest_checkpoint(self.path)}; start again in "
            "another folder with a lower inner_lr or meta_lr."
        )

    def _remove(self, made):
        with contextlib.suppress(OSError):
            if self.saved:
                checkpoint.remove_all(self.path)
                # There was none before: `refuse_other_run`.
                for name in (METRICS, VISUALDL):
                    with contextlib.suppress(OSError):
                        os.remove(os.path.join(self.path, name))
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.join(self.path, os.path.dirname(VISUALDL)))
            if made:
                os.rmdir(self.path)


def refuse_other_run(settings: Settings) -> None:
    """UserError if the run folder holds a run and this one is not to continue it."""
    folder, other = settings.run_folder, f"choose another folder with {flag('output')}."
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"The output folder {folder} is a file; choose another with {flag('output')}.")
    newest = checkpoint.newest_checkpoint(folder)
    remains = [name for name in (METRICS, REPORT) if os.path.exists(os.path.join(folder, name))]
    if settings.resume and not newest:
        if remains:
            raise UserError(
                f"{folder} holds {remains[0]} of a run but no checkpoint to continue from: {other}"
            )
        raise UserError(f"{folder} holds no run to continue: leave {flag('resume')} out, or {other}")
    if (newest or remains) and not settings.resume:
        raise UserError(f"{folder} holds a run already; continue it with {flag('resume')}, or {other}")

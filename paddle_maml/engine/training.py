"""Training: the only loop over meta-iterations, with validation, checkpoints, resume and the final test."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import time

import numpy as np
import paddle

from ..data.episodes import EpisodeBuilder, meta_batch
from ..errors import UserError
from ..files import digest, lock_folder, write_whole
from ..report.log import METRICS, Metrics, Progress, Silence, read_metrics, require_visualdl
from ..report.pictures import draw_curve, png
from ..report.tables import CURVE, REPORT, evaluation_table, write_json
from . import checkpoint
from .assembly import (
    describe,
    environment,
    evaluation_episodes,
    load_training_images,
    make_learner,
)
from .background import Ahead
from .device import select_device
from .evaluation import Diverged, evaluate
from .parallel import ALONE, Ranks
from .processes import started_rank
from .provenance import UNKNOWN, fresh_weights_are_a_way_out, origin_of, start_weights
from .settings import Settings, flag
from .signals import Interrupted, StopRequest
from .weights import load_weights, optimizer_state, set_optimizer_state, set_weights


def meta_gradient(learner, batch, share=1.0, ranks=ALONE, **options):
    """Leave the meta-gradient of a meta-batch in the parameters' `.grad`.

    Args:
        learner: a `MetaLearner` with cleared gradients.
        batch: x_spt, y_spt, x_qry, y_qry with a leading axis of T tasks, this rank's; None if it has none.
        share: this rank's part of the tasks of the meta-batch, a fraction.
        ranks: the group of processes that the tasks are divided over.
        options: `order` and `step_weights` of `MetaLearner.meta_loss`.
    Returns:
        (loss, accuracy): means over the query sets of the whole meta-batch, floats.
    """
    numbers = [0.0, 0.0]
    if batch is not None:
        loss, accuracy = learner.meta_loss(*batch, **options)
        (loss * share).backward()
        numbers = [float(loss) * share, float(accuracy) * share]
    return ranks.sum_gradients(learner.parameters(), numbers)


def multi_step_weights(iteration, period, inner_steps):
    """Weights of the query losses after 0 .. K inner steps, for `MetaLearner.meta_loss`.

    They begin equal for the steps 1 .. K, and all but the last fall linearly to 0 over `period`
    meta-iterations: the annealing of Antoniou et al. 2019, "How to train your MAML", section 4, without its
    lower bound on the earlier weights.
    """
    earlier = max(0.0, 1 - iteration / period) / inner_steps if period else 0.0
    return [0.0] + [earlier] * (inner_steps - 1) + [1 - earlier * (inner_steps - 1)]


def train(settings):
    """Train, keep the weights with the best validation accuracy, test them, and write the run folder.

    The run folder holds metrics.csv, the newest checkpoint set and, at the end, report.json and curve.png. A
    run that is killed and resumed ends with the same weights, bit for bit, as one that is not (on a CPU). In
    a group of processes (parallel.py) every rank calls this, and rank 0 writes and speaks.

    Args:
        settings: `Settings`; its `processes` is for the command line, which starts the group.
    Returns:
        The report, a dict as in report.json.
    Raises:
        UserError: a setting, the data or the run folder is not usable, or the loss is no longer a finite
            number.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    settings.check()
    if settings.visualdl:
        require_visualdl()
    device = select_device(settings.device, announce=print if started_rank() == 0 else lambda line: None)
    ranks = Ranks.join()
    if ranks.leads:
        refuse_other_run(settings)
    parts, rule = load_training_images(settings)
    stop = StopRequest()
    try:
        with stop, contextlib.ExitStack() as held:
            run = _Run(settings, parts, device, stop, ranks, held)
            run.loop()
            return run.test(rule)
    except UserError:
        if stop.requested and not ranks.leads:
            raise Interrupted("Stopped because another process failed, which says why.") from None
        raise


@dataclasses.dataclass
class _State:
    """What a checkpoint holds beside weights and moments."""

    start_sha256: str = ""  # of the file of weights that the run started from
    trained_on: list = dataclasses.field(default_factory=list)  # as in `checkpoint.Origin`
    iteration: int = 0  # meta-iterations done
    validated: int = 0  # the meta-iteration of the last validation
    logged: int = 0  # the meta-iteration of the last row of metrics.csv
    best_iteration: int = 0
    best_accuracy: float = -1.0
    best_interval: float = 0.0
    meta_lr: float = 0.0  # of the last meta-iteration
    # Sums since the last row.
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    summed: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0  # of the whole run, over all its pieces


class _Run:
    """A run from its folder's checkpoint, or the beginning, to its report.

    Args:
        settings: `Settings`.
        parts: dict from "train", "val" and "test" to `ImageSet`.
        device: as Paddle names it.
        stop: a `StopRequest`.
        ranks: the group of processes.
        held: an `ExitStack`, left when the run ends: it closes the log, removes what a run that never began
            has written, and holds the folder's lock.
    """

    def __init__(self, settings, parts, device, stop, ranks, held):
        self.settings, self.parts, self.device, self.stop, self.ranks = settings, parts, device, stop, ranks
        self.folder = settings.run_folder
        self.state, self.saved = _State(), None
        self.metrics = self.progress = Silence()
        begins_with = self._make_learner_and_episodes()
        made = self._take_folder(held)
        newest = checkpoint.newest_checkpoint(self.folder) if settings.resume else None
        self.fresh = not newest
        if ranks.leads and self.fresh:
            # A run that fails before its first step leaves nothing that would be in the way of the next try.
            held.push(lambda failure, *_: self._remove_what_never_began(failure, made))
        held.callback(self.close)
        if newest:
            begins_with = f"Continuing {self.folder} after meta-iteration {self._restore(newest)}."
        else:
            self.best = self._weights()
        if not (
            ranks.agree(self.state.iteration)
            and ranks.agree(sum(float(np.abs(a).sum()) for a in self._weights().values()))
        ):
            raise UserError(
                f"The processes of the run start from different weights; the output folder {self.folder} "
                "must be one that all of "
                "them see."
            )
        if not newest:
            self.save()  # before there is a log: the log of a run is never without a checkpoint
        if ranks.leads:
            self.metrics = Metrics(self.folder, self.state.logged, settings.visualdl)
            self.progress = Progress(settings.iterations, self.state.iteration)
        if begins_with:
            self.progress.note(begins_with)

    def _make_learner_and_episodes(self):
        """Learner, meta-optimizer and episodes as a run begins with them; returns a sentence on its first
        weights, None for fresh ones."""
        settings, parts, said, before = self.settings, self.parts, None, []
        paddle.seed(settings.seed)
        self.learner = make_learner(settings, parts["train"])
        if settings.resume and checkpoint.newest_checkpoint(self.folder):
            pass  # its weights will take the place of all others
        elif settings.start_from:
            weights, origin = start_weights(settings)
            with fresh_weights_are_a_way_out():
                load_weights(self.learner, weights, fit=True)
            self.state.start_sha256 = digest(weights)
            before = origin.trained_on if origin else [UNKNOWN]
            unknown = UNKNOWN in before
            said = f"Starting from {weights}" + (
                "; which classes these weights were trained on is not known." if unknown else "."
            )
        elif settings.resume:
            said = f"There is no checkpoint in {self.folder} yet: starting from the beginning."
        self.state.trained_on = origin_of(settings, {"trained_on": before}).trained_on
        self.builder = EpisodeBuilder(
            parts["train"],
            settings.n_way,
            settings.k_shot,
            settings.k_query,
            seed=settings.seed,
            rotations=settings.rotations,
        )
        self.val_builder = _held_back_episodes(settings, parts["val"])
        _held_back_episodes(settings, parts["test"])  # refuses now what the test would refuse hours later
        self.schedule = settings.meta_lr
        if settings.meta_lr_schedule == "cosine":
            self.schedule = paddle.optimizer.lr.CosineAnnealingDecay(
                settings.meta_lr, T_max=settings.iterations
            )
        self.optimizer = paddle.optimizer.Adam(
            learning_rate=self.schedule, parameters=self.learner.parameters()
        )
        return said

    def _take_folder(self, held):
        """Make and lock the run folder; returns whether it was made."""
        made = not os.path.isdir(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        if self.ranks.leads:
            held.enter_context(lock_folder(self.folder))
            refuse_other_run(self.settings)  # another process may have had the folder since the first look
            checkpoint.remove_leftovers(self.folder)
        return made

    def loop(self):
        """Meta-iterations until the end; every piece of work is due by the state alone, so that a resumed run
        finds it."""
        settings, state = self.settings, self.state
        ahead = Ahead(self._build, state.iteration, settings.iterations)
        try:
            while True:
                began = time.monotonic()
                last = state.iteration == settings.iterations
                if state.validated < state.iteration and (last or state.iteration % settings.val_every == 0):
                    self._validate()
                elif state.logged < state.iteration and (last or state.iteration % settings.log_every == 0):
                    self._log()
                state.seconds += time.monotonic() - began
                if (
                    last
                    or state.iteration % settings.checkpoint_every == 0
                    or state.validated == state.iteration
                ):
                    self.save()
                self._stop_if_asked()
                if last:
                    return
                self._step(ahead.next())
        finally:
            ahead.close()

    def test(self, rule):
        """Test the best weights, write and return the report."""
        settings, state = self.settings, self.state
        set_weights(self.learner, self.best, "the best checkpoint")
        result = evaluate(
            self.learner,
            _held_back_episodes(settings, self.parts["test"]),
            settings.test_episodes,
            settings.steps_at_test,
            between=self._stop_if_asked,
            ranks=self.ranks,
        )
        report = {
            "test": describe(result, settings, self.parts["test"], rule, "test"),
            "validation": {
                "accuracy": state.best_accuracy,
                "interval": state.best_interval,
                "episodes": settings.val_episodes,
                "iteration": state.best_iteration,
            },
            "start_sha256": state.start_sha256 or None,
            "trained_on": state.trained_on,
            "iterations": state.iteration,
            "training_seconds": round(state.seconds, 1),
            "processes": self.ranks.size,
            "seed": settings.seed,
            "environment": environment(self.device),
            "settings": settings.as_dict(),
        }
        if self.ranks.leads:
            write_json(os.path.join(self.folder, REPORT), report)
            write_whole(
                os.path.join(self.folder, CURVE),
                png(draw_curve(read_metrics(os.path.join(self.folder, METRICS)))),
            )
        self.progress.note(evaluation_table(report["test"]))
        self.progress.note(
            f"Weights of meta-iteration {state.best_iteration}, the best of validation "
            f"({state.best_accuracy:.2%}). "
            f"Report: {os.path.join(self.folder, REPORT)}"
        )
        return report

    def save(self):
        """Write a checkpoint set, unless the newest one has this state already or another rank does it."""
        state = (self.state.iteration, self.state.validated)
        if self.saved == state or not self.ranks.leads:
            return
        weights = self._weights()
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise self._diverged("a weight is not a finite number", self.state.iteration)
        states = {
            **dataclasses.asdict(self.state),
            "settings": self.settings.as_dict(),
            "seed": self.settings.seed,
            "environment": environment(self.device),
        }
        best = (
            self.best if self.state.validated else weights
        )  # until there is a validation the newest must do
        checkpoint.write_checkpoint(
            self.folder,
            self.state.iteration,
            weights,
            best,
            optimizer_state(self.optimizer, self.learner),
            states,
        )
        self.saved = state

    def close(self):
        self.progress.close()
        self.metrics.close()

    def _build(self, iteration):
        size = self.settings.meta_batch
        indices = self.ranks.share(range(iteration * size, (iteration + 1) * size))
        return (meta_batch(self.builder, indices) if indices else None), len(indices) / size

    def _step(self, batch):
        state, began = self.state, time.monotonic()
        if self.settings.meta_lr_schedule == "cosine":
            # Given the iteration, Paddle uses the closed form: the rate does not depend on how the run got
            # here.
            self.schedule.step(epoch=state.iteration)
        order = 1 if state.iteration < self.settings.first_order_iterations else self.settings.order
        weights = multi_step_weights(
            state.iteration, self.settings.multi_step_iterations, self.settings.inner_steps
        )
        loss, accuracy = meta_gradient(self.learner, *batch, self.ranks, order=order, step_weights=weights)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        # ReLU and maximum take NaN for zero, so that the loss may look sound when the gradient is not.
        if not all(bool(paddle.isfinite(parameter.grad).all()) for parameter in self.learner.parameters()):
            raise self._diverged("the meta-gradient is not finite")
        self.optimizer.step()
        self.optimizer.clear_grad()
        state.iteration += 1
        state.meta_lr = float(self.optimizer.get_lr())
        state.loss_sum += loss
        state.accuracy_sum += accuracy
        state.summed += 1
        state.step_seconds += time.monotonic() - began
        state.seconds += time.monotonic() - began
        self.progress.update(state.iteration, **self._means())

    def _means(self):
        state = self.state
        return {
            "loss": state.loss_sum / state.summed,
            "accuracy": state.accuracy_sum / state.summed,
            "episodes_per_second": state.summed * self.settings.meta_batch / max(state.step_seconds, 1e-9),
        }

    def _validate(self):
        state, settings = self.state, self.settings
        try:
            result = evaluate(
                self.learner,
                self.val_builder,
                settings.val_episodes,
                settings.steps_at_test,
                between=self._stop_if_asked,
                ranks=self.ranks,
            )
        except Diverged:
            raise self._diverged(
                "the loss of the validation is not a finite number", state.iteration
            ) from None
        state.validated = state.iteration
        if result["accuracy"] > state.best_accuracy:
            state.best_iteration, state.best_accuracy, state.best_interval = (
                state.iteration,
                result["accuracy"],
                result["interval"],
            )
            self.best = self._weights()
        self.progress.note(
            f"validation after {state.iteration}: {result['accuracy']:.2%} +- {result['interval']:.2%}, best "
            f"{state.best_accuracy:.2%} after {state.best_iteration}"
        )
        self._log(val_loss=result["loss"], val_accuracy=result["accuracy"], val_interval=result["interval"])

    def _log(self, **validation):
        state = self.state
        if state.logged < state.iteration:
            self.metrics.add(
                iteration=state.iteration,
                meta_lr=state.meta_lr,
                seconds=state.seconds,
                **self._means(),
                **validation,
            )
        state.logged, state.loss_sum, state.accuracy_sum, state.summed, state.step_seconds = (
            state.iteration,
            0.0,
            0.0,
            0,
            0.0,
        )

    def _weights(self):
        # Copies: Paddle may show the tensor's own memory, which the next step overwrites.
        return {name: np.array(tensor.numpy()) for name, tensor in self.learner.state_dict().items()}

    def _restore(self, path):
        """Take up a checkpoint set; returns the number of meta-iterations done."""
        files = {
            name: os.path.join(path, name)
            for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER, checkpoint.STATES)
        }
        stored, stored_settings = checkpoint.read_states(files[checkpoint.STATES])
        _refuse_other_settings(stored_settings, self.settings)
        if (
            self.settings.meta_lr_schedule == "cosine"
            and self.settings.iterations != stored_settings.iterations
        ):
            raise UserError(
                f"{flag('iterations')} is {self.settings.iterations}, but the meta rate of the run in "
                f"{self.folder} falls to 0 at "
                f"{stored_settings.iterations}; a resumed run cannot change it: train further in another "
                "folder, with "
                f"{flag('start_from')} {shlex.quote(self.folder)}."
            )
        stored = {**stored, "trained_on": origin_of(stored_settings, stored).trained_on}
        for field in dataclasses.fields(_State):
            value = stored.get(field.name)
            if type(value) is not type(getattr(self.state, field.name)):
                raise UserError(f"{files[checkpoint.STATES]} is damaged: {field.name} is {value!r}.")
            setattr(self.state, field.name, value)
        if self.state.iteration > self.settings.iterations:
            raise UserError(
                f"iterations is {self.settings.iterations}, but the run in {self.folder} has done "
                f"{self.state.iteration} already: "
                f"ask for more, or choose another folder with {flag('output')}."
            )
        load_weights(self.learner, files[checkpoint.BEST])
        self.best = self._weights()
        load_weights(self.learner, files[checkpoint.WEIGHTS])
        if self.state.iteration:
            optimizer = checkpoint.read_file(files[checkpoint.OPTIMIZER])
            set_optimizer_state(self.optimizer, self.learner, optimizer, files[checkpoint.OPTIMIZER])
        self.saved = (self.state.iteration, self.state.validated)
        return self.state.iteration

    def _stop_if_asked(self):
        if self.ranks.any(self.stop.requested):
            self.save()
            self.ranks.any(
                False
            )  # nobody leaves before the checkpoint is whole: the end of one process ends the others
            raise Interrupted(
                f"Stopped after meta-iteration {self.state.iteration}; continue with: python train.py "
                "--resume "
                f"--output {shlex.quote(self.folder)}"
            )

    def _diverged(self, what, iteration=None):
        iteration = iteration or self.state.iteration + 1
        if not self.state.iteration and self.fresh:
            return UserError(
                f"Stopped at meta-iteration {iteration}, because {what}: lower inner_lr or meta_lr."
            )
        newest = checkpoint.newest_checkpoint(self.folder)
        return UserError(
            f"Stopped at meta-iteration {iteration}, because {what}; the last good checkpoint is {newest}; "
            "start again in another folder with a lower inner_lr or meta_lr."
        )

    def _remove_what_never_began(self, failure, made):
        if failure is None or issubclass(failure, Interrupted) or self.state.iteration:
            return
        if self.saved:
            checkpoint.remove_all(self.folder)
            # There was none before: `refuse_other_run`.
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self.folder, METRICS))
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)


def _held_back_episodes(settings, images):
    """The episodes of validation or test; their number of query images is a setting of its own here."""
    try:
        return evaluation_episodes(settings, images)
    except UserError as error:
        raise UserError(
            f"In validation and test, where k_query is {flag('test_k_query')}, {settings.test_k_query}: "
            f"{error}"
        ) from None


def refuse_other_run(settings):
    """UserError if the run folder holds a run and this one is not to continue it."""
    folder = settings.run_folder
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"The output folder {folder} is a file; choose another with {flag('output')}.")
    newest = checkpoint.newest_checkpoint(folder)
    remains = [name for name in (METRICS, REPORT) if os.path.exists(os.path.join(folder, name))]
    if settings.resume and remains and not newest:
        raise UserError(
            f"{folder} holds {remains[0]} of a run but no checkpoint to continue from: choose another "
            f"folder with {flag('output')}."
        )
    if (newest or remains) and not settings.resume:
        raise UserError(
            f"{folder} holds a run already; continue it with {flag('resume')}, or choose another folder "
            f"with {flag('output')}."
        )


def _refuse_other_settings(old, new):
    for field in dataclasses.fields(Settings):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now and not field.metadata["may_change"]:
            now, before = ("none" if value is None else value for value in (now, before))
            raise UserError(
                f"{flag(field.name)} is {now}, but the run in {new.run_folder} was started with {before}; "
                "a resumed run cannot change it."
            )

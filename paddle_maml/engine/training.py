"""Training: what happens in a run, from its first line to its report."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Callable

import numpy as np
import paddle

from ..data.episodes import meta_batch
from ..data.images import ImageSet
from ..errors import UserError
from ..files import digest_of
from ..learners.base import Learner
from ..report.log import require_visualdl
from ..report.tables import score_key, score_text
from .assembly import (
    choose_device,
    describe,
    environment,
    held_back_episodes,
    in_training,
    load_training_images,
    make_learner,
    make_optimizer,
    meta_loss_options,
    own_network_may_fail,
    training_episodes,
)
from .background import Ahead
from .ensemble import as_tested, scale_inner_rates
from .evaluation import Diverged, evaluate
from .parallel import ALONE, Ranks
from .processes import started_rank
from .provenance import UNKNOWN, fresh_weights_are_a_way_out, origin_of, start_weights
from .run_folder import NotFinite, RunFolder, refuse_other_run
from .settings import Settings
from .signals import Interrupted, StopRequest
from .weights import fitted, load_weights, set_weights


def train(settings: Settings) -> dict:
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
    announce = print if started_rank() == 0 else lambda line: None
    device = choose_device(settings, announce)
    ranks = Ranks.join()
    if ranks.leads:
        refuse_other_run(settings)
    parts, rule = load_training_images(settings, announce)
    stop = StopRequest()
    try:
        with stop, own_network_may_fail(settings):
            trainer = Trainer(settings, parts, ranks)
            folder = RunFolder(trainer, environment(device), stop)
            with folder.taken() as newest:
                folder.open(folder.restore(newest) if newest else trainer.begin())
                trainer.loop(folder)
                result = trainer.test(parts["test"], folder.stop_if_asked)
                return folder.report(describe(result, settings, parts["test"], rule, "test"))
    except UserError:
        if stop.requested and not ranks.leads:
            raise Interrupted("Stopped because another process failed, which says why.") from None
        raise


def meta_gradient(
    learner: Learner, batch: tuple | None, share: float = 1.0, ranks: Ranks = ALONE, **options: Any
) -> list[float]:
    """Leave the meta-gradient of a meta-batch in the parameters' `.grad`.

    Args:
        learner: anything with `meta_loss` and `parameters`; its gradients are cleared.
        batch: x_spt, y_spt, x_qry, y_qry with a leading axis of T tasks, this rank's; None if it has none.
        share: this rank's part of the tasks of the meta-batch, a fraction.
        ranks: the group of processes that the tasks are divided over.
        options: of `meta_loss`.
    Returns:
        (loss, accuracy): means over the query sets of the whole meta-batch, floats.
    """
    numbers = [0.0, 0.0]
    if batch is not None:
        loss, accuracy = learner.meta_loss(*batch, **options)
        (loss * share).backward()
        numbers = [float(loss) * share, float(accuracy) * share]
    return ranks.sum_gradients(learner.parameters(), numbers)


# Training tasks that a learner's `settle` gets.
SETTLED = 8


@dataclasses.dataclass
class State:
    """What a checkpoint holds beside weights and moments."""

    listing_sha256: str = ""  # of a folder of images: `ImageSet.listing_sha256`
    start_sha256: str = ""  # of the file of weights that the run started from
    trained_on: list = dataclasses.field(default_factory=list)  # as in `provenance.Origin`
    iteration: int = 0  # meta-iterations done
    validated: int = 0  # the meta-iteration of the last validation
    logged: int = 0  # the meta-iteration of the last row of metrics.csv
    best_iteration: int = 0
    best_accuracy: float = -1.0  # or another score
    best_interval: float = 0.0
    # Of the validations whose weights are kept, the best first: iteration, score, interval.
    kept: list = dataclasses.field(default_factory=list)
    meta_lr: float = 0.0  # of the last meta-iteration
    # Sums since the last row.
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    summed: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0  # of the whole run, over all its pieces

    def add(self, loss: float, accuracy: float, meta_lr: float, seconds: float) -> None:
        """Count a meta-iteration."""
        self.iteration += 1
        self.meta_lr = meta_lr
        self.loss_sum += loss
        self.accuracy_sum += accuracy
        self.summed += 1
        self.step_seconds += seconds
        self.seconds += seconds

    def means(self, tasks: int) -> dict:
        """Of the meta-iterations since the last row, each of so many tasks."""
        return {
            "loss": self.loss_sum / self.summed,
            "accuracy": self.accuracy_sum / self.summed,
            "episodes_per_second": self.summed * tasks / max(self.step_seconds, 1e-9),
        }

    def start_row(self) -> None:
        """The sums are in a row now."""
        self.logged, self.summed = self.iteration, 0
        self.loss_sum = self.accuracy_sum = self.step_seconds = 0.0


class Trainer:
    """A learner in training: its meta-optimizer, its episodes and how far it is. It writes no file.

    Args:
        settings: `Settings`.
        parts: dict from "train", "val" and "test" to `ImageSet`.
        ranks: the group of processes.
    """

    def __init__(self, settings: Settings, parts: dict[str, ImageSet], ranks: Ranks = ALONE):
        self.settings, self.ranks = settings, ranks
        self.state = State(listing_sha256=parts["train"].listing_sha256)
        paddle.seed(settings.seed)
        self.learner = make_learner(in_training(settings), parts["train"], training=True)
        self.optimizer, self.schedule = make_optimizer(settings, self.learner)
        # What is validated, kept and tested: the learner itself, or one that gets the average of its weights
        # or the outputs of as many classes as a test has.
        more_outputs = settings.classes_in_training > settings.n_way and not settings.embeds
        other = settings.average_weights or more_outputs
        self.tested = make_learner(settings, parts["train"], training=True) if other else self.learner
        with as_tested(settings, [self.tested]):
            pass  # refuses now what the first validation would refuse
        self.episodes = training_episodes(settings, parts["train"])
        self.val_episodes = held_back_episodes(settings, parts["val"])
        held_back_episodes(settings, parts["test"])  # refuses now what the test would refuse hours later
        self.best = {}  # the weights with the best validation accuracy
        self.kept = {}  # those of the best validations that are to be kept, by meta-iteration
        self.average = None  # the moving average of the weights

    def begin(self) -> str | None:
        """Load the weights that the settings start from; returns a sentence on them, None for fresh ones."""
        weights, origin = start_weights(self.settings)
        before, said = [], None
        if weights:
            with fresh_weights_are_a_way_out():
                load_weights(self.learner, weights, fit=True)
            if self.settings.start_inner_lr_factor != 1:
                scale_inner_rates(self.learner, self.settings.start_inner_lr_factor)
            self.state.start_sha256 = digest_of(weights.data)
            before = origin.trained_on if origin else [UNKNOWN]
            said = f"Starting from {weights}"
            if origin and origin.settings.learner != self.settings.learner:
                said += f", weights of {origin.settings.learner}"
            if UNKNOWN in before:
                said += "; which classes these weights were trained on is not known"
            said += "."
        self.state.trained_on = origin_of(self.settings, {"trained_on": before}).trained_on
        if self.settings.average_weights:
            self.average = self.weights()
        return said

    def loop(self, folder: RunFolder) -> None:
        """Meta-iterations until the end; every piece of work is due by the state alone, so that a resumed run
        finds it."""
        settings, state = self.settings, self.state
        ahead = Ahead(self.meta_batch, state.iteration, settings.iterations)
        try:
            while True:
                began, last = time.monotonic(), state.iteration == settings.iterations
                if state.validated < state.iteration and (last or state.iteration % settings.val_every == 0):
                    folder.log(**self.validate(folder))
                elif state.logged < state.iteration and (last or state.iteration % settings.log_every == 0):
                    folder.log()
                state.seconds += time.monotonic() - began
                validated = state.validated == state.iteration
                if last or validated or state.iteration % settings.checkpoint_every == 0:
                    folder.save()
                folder.stop_if_asked()
                if last:
                    return
                self.step(*ahead.next())
                folder.progress.update(
                    state.iteration,
                    **state.means(settings.meta_batch),
                    score_name=self.learner.objective.score_name,
                )
        finally:
            ahead.close()

    def step(self, batch: tuple | None, share: float) -> None:
        """One meta-iteration on this rank's tasks, which are a share of the meta-batch."""
        state, began = self.state, time.monotonic()
        if self.schedule:
            # Given the iteration, Paddle uses the closed form: the rate does not depend on how the run got
            # here.
            self.schedule.step(epoch=state.iteration)
        if self.settings.own_network:
            # Its dropout draws the same in a resumed run.
            paddle.seed(hash((self.settings.seed, state.iteration, self.ranks.rank)) % 2**63)
        options = meta_loss_options(self.settings, state.iteration)
        loss, accuracy = meta_gradient(self.learner, batch, share, self.ranks, **options)
        if not math.isfinite(loss):
            raise NotFinite(state.iteration + 1, f"the loss is {loss}")
        # ReLU and maximum take NaN for zero, so that the loss may look sound when the gradient is not.
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        if not all(bool(paddle.isfinite(gradient).all()) for gradient in gradients):
            raise NotFinite(state.iteration + 1, "the meta-gradient is not finite")
        self.optimizer.step()
        self.optimizer.clear_grad()
        if self.average is not None:
            self._follow()
        state.add(loss, accuracy, float(self.optimizer.get_lr()), time.monotonic() - began)

    def validate(self, folder: RunFolder) -> dict:
        """Score the validation episodes, keep the weights if they are the best so far; returns the columns of
        the log that tell of it."""
        state = self.state
        self.shown()
        self.tested.settle(*meta_batch(self.episodes, range(SETTLED)))
        try:
            count = self.settings.val_episodes
            result = self._evaluate(self.val_episodes, count, folder.stop_if_asked, every_step=False)
        except Diverged:
            what = "the loss of the validation is not a finite number"
            raise NotFinite(state.iteration, what) from None
        state.validated = state.iteration
        score, interval = result[score_key(result)], result["interval"]
        better = (
            score > state.best_accuracy
            if self.learner.objective.higher_is_better
            else score < state.best_accuracy
        )
        if better or not state.best_iteration:
            state.best_iteration, state.best_accuracy, state.best_interval = state.iteration, score, interval
            self.best = self.kept_weights()
        if self.settings.keep_best > 1:
            self._keep(score, interval)
        shown, margin, best = (score_text(result, value) for value in (score, interval, state.best_accuracy))
        folder.progress.note(
            f"validation after {state.iteration}: {shown} +- {margin}, best {best} after "
            f"{state.best_iteration}"
        )
        return {"val_loss": result["loss"], "val_accuracy": score, "val_interval": interval}

    def test(self, images: ImageSet, between: Callable[[], None] | None = None) -> dict:
        """The result of `evaluate` for the best weights, which the learner that is tested has afterwards."""
        set_weights(self.tested, self.best, "the best checkpoint")
        episodes = held_back_episodes(self.settings, images)
        every_step = self.settings.every_step_at_test
        return self._evaluate(episodes, self.settings.test_episodes, between, every_step)

    def shown(self) -> dict:
        """The weights that are to be validated now, which the learner that is tested has afterwards."""
        if self.tested is not self.learner:
            arrays = self.weights() if self.average is None else self.average
            set_weights(self.tested, fitted(arrays, self.tested.state_dict()), "the run's state")
        return self.kept_weights()

    def weights(self) -> dict:
        """The learner's weights by name. Copies: Paddle may show the tensor's own memory, which the next step
        overwrites."""
        return _arrays_of(self.learner)

    def kept_weights(self) -> dict:
        """The weights of the learner that is tested, without what only training needs."""
        training_only = self.tested.TRAINING_ONLY
        return {name: array for name, array in _arrays_of(self.tested).items() if name not in training_only}

    def meta_batch(self, iteration: int) -> tuple:
        """This rank's tasks of a meta-iteration, None if it has none, and their share of all."""
        size = self.settings.meta_batch
        indices = self.ranks.share(range(iteration * size, (iteration + 1) * size))
        return (meta_batch(self.episodes, indices) if indices else None), len(indices) / size

    def _follow(self):
        """Move the average a step. Its decay grows from 2/11 to the setting's, so that the first weights are
        soon forgotten (as in TensorFlow's ExponentialMovingAverage)."""
        step = self.state.iteration + 1
        decay = min(self.settings.average_weights, (1 + step) / (10 + step))
        for name, array in self.weights().items():
            self.average[name] += np.asarray(1 - decay, array.dtype) * (array - self.average[name])

    def _keep(self, score, interval):
        """Keep the weights that were validated, if they are among the best; of equals the earlier ones."""
        state, sign = self.state, -1 if self.learner.objective.higher_is_better else 1
        entry = {"iteration": state.iteration, "score": score, "interval": interval}
        ranked = sorted([*state.kept, entry], key=lambda one: sign * one["score"])
        state.kept = ranked[: self.settings.keep_best]
        self.kept[state.iteration] = self.kept_weights()
        self.kept = {one["iteration"]: self.kept[one["iteration"]] for one in state.kept}

    def _evaluate(self, episodes, count, between, every_step):
        how = {"steps": self.settings.steps_at_test, "between": between, "every_step": every_step}
        with as_tested(self.settings, [self.tested]) as tested:
            return evaluate(tested, episodes, count, ranks=self.ranks, **how)


def _arrays_of(learner):
    return {name: np.array(tensor.numpy()) for name, tensor in learner.state_dict().items()}

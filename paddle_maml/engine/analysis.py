"""What one accuracy leaves out: whose statistics batch norm used, how many inner steps of which rate, how
alike the classes were and how they were turned, and what was mistaken for what."""

from __future__ import annotations

import dataclasses
from typing import Callable

import numpy as np
from PIL import Image

from ..data.episodes import EpisodeBuilder, meta_batch
from ..data.images import ImageSet, alphabet_of
from ..errors import UserError
from ..files import write_together
from ..learners.base import Learner
from ..learners.maml import MetaLearner
from ..report.pictures import draw_episode, draw_matrix, draw_sheet, png, stacked
from ..report.tables import ANALYSIS, NO_MISTAKE, ONE_ALPHABET, ROTATED, confusion, json_file
from .assembly import evaluation_episodes
from .ensemble import inner_rates
from .evaluation import BATCH_STATISTICS, Diverged, mean_and_interval, score_episodes
from .settings import Settings

INNER_STEPS = 10
RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PAIRS, WORST = 10, 6  # classes confused most often, and episodes, that are shown
EXAMPLES, MISTAKES = (
    3,
    20,
)  # images of each class of a pair, and query images of an episode, that are shown at most
BATCH = 16  # episodes at a time; it changes memory only

CONFUSION, WORST_EPISODES = "confusion.png", "worst.png"


@dataclasses.dataclass
class Predictions:
    """The labels that were predicted for the query images of episodes 0, 1, ..., (episodes, N), and the true
    ones, (N,)."""

    builder: EpisodeBuilder
    predicted: np.ndarray
    labels: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """Of each episode."""
        return (self.predicted == self.labels).mean(axis=1)


def predict_episodes(
    learner: Learner, builder: EpisodeBuilder, episodes: int, steps: int | None, statistics: str = "query"
) -> Predictions:
    """`Predictions` of a learner for episodes 0 .. episodes - 1, see `MetaLearner.predict`; raises
    `Diverged`."""
    predicted, how = [], {} if steps is None else {"steps": steps}
    for start in range(0, episodes, BATCH):
        x_spt, y_spt, x_qry, y_qry = meta_batch(builder, range(start, min(start + BATCH, episodes)))
        logits = learner.predict(x_spt, y_spt, x_qry, statistics=statistics, **how)
        if not np.isfinite(logits).all():
            raise Diverged("A score is not a finite number: lower inner_lr.")
        predicted.append(logits.argmax(axis=-1))
    return Predictions(builder, np.concatenate(predicted), y_qry[0])


def analyse(
    learner: MetaLearner,
    settings: Settings,
    images: ImageSet,
    val_images: ImageSet,
    announce: Callable[[str], None],
) -> tuple[dict, Predictions]:
    """Measure all of it.

    Args:
        learner: a `MetaLearner` with its weights.
        settings: `Settings`: the episodes' shape and number (test_episodes), the inner steps of testing, the
            seed.
        images: `ImageSet` of the part to test on.
        val_images: that of validation, where inner rates are compared.
        announce: takes a line before each measurement.

    Returns:
        (analysis, predictions): a dict of plain values, and the `Predictions` of the published protocol.

    Raises:
        UserError: the episodes cannot be built, or the adaptation diverges with the settings as they are.
    """
    episodes, steps = settings.test_episodes, settings.steps_at_test
    builder, val_builder = evaluation_episodes(settings, images), evaluation_episodes(settings, val_images)
    announce("batch statistics of " + BATCH_STATISTICS["query"])
    predictions = predict_episodes(learner, builder, episodes, steps)

    def accuracy(title, make_builder, **options):
        announce(title)
        return _measured(
            lambda: predict_episodes(learner, make_builder(), episodes, steps, **options).accuracies
        )

    by_statistics = [{"statistics": BATCH_STATISTICS["query"], **_summary(predictions.accuracies)}]
    for statistics, meaning in list(BATCH_STATISTICS.items())[1:3]:
        result = accuracy("batch statistics of " + meaning, lambda: builder, statistics=statistics)
        by_statistics.append({"statistics": meaning, **result})
    rotated = accuracy(ROTATED, lambda: evaluation_episodes(settings, images, rotations=True))
    one_alphabet = accuracy(ONE_ALPHABET, lambda: evaluation_episodes(settings, images, within_alphabet=True))
    announce(f"inner steps: 0 to {INNER_STEPS}")
    by_steps = _by_steps(*score_episodes(learner, builder, episodes, INNER_STEPS, BATCH))
    by_factor = []
    for factor in RATE_FACTORS:
        with inner_rates(learner, factor):
            by_factor.append(
                {
                    "factor": factor,
                    **accuracy(f"inner rates times {factor:g}, validation classes", lambda: val_builder),
                }
            )
    counts = _counts(predictions)
    worst = np.argsort(predictions.accuracies, kind="stable")[:WORST]
    return {
        "episodes": episodes,
        "n_way": settings.n_way,
        "k_shot": settings.k_shot,
        "k_query": settings.test_k_query,
        "inner_steps": steps,
        "inner_lr": settings.inner_lr,
        "learn_inner_lr": settings.learn_inner_lr,
        "seed": settings.seed,
        "accuracy_by_batch_statistics": by_statistics,
        "accuracy_of_rotated_classes": rotated,
        "accuracy_within_alphabets": one_alphabet,
        "accuracy_by_inner_steps": by_steps,
        "accuracy_by_rate_factor": by_factor,
        "confused": _confused_pairs(builder.classes, *counts),
        "worst_episodes": [
            {"episode": int(index), "accuracy": float(predictions.accuracies[index])} for index in worst
        ],
    }, predictions


def _by_steps(accuracies, losses):
    """Summaries of the columns, which are after 0, 1, ... inner steps."""
    finite = np.isfinite(losses).all(axis=0)
    return [
        {
            "steps": step,
            **(
                _summary(accuracies[:, step])
                if finite[step]
                else {"not_measured": "A loss is not a finite number."}
            ),
        }
        for step in range(accuracies.shape[1])
    ]


def _measured(accuracies):
    """Mean and interval of what a function returns, or why there is none."""
    try:
        return _summary(accuracies())
    except UserError as error:
        return {"not_measured": str(error)}


def episode_strip(learner: Learner, builder: EpisodeBuilder, number: int, steps: int | None) -> Image.Image:
    """Episode `number` and a learner's answers after so many inner steps, see `draw_episode`; raises as
    `predict_episodes`."""
    x_spt, y_spt, x_qry, y_qry = builder[number]
    how = {} if steps is None else {"steps": steps}
    answers = learner.predict(x_spt, y_spt, x_qry, **how).argmax(axis=-1)
    support = [(_grey(image), int(label)) for image, label in zip(x_spt, y_spt)]
    queries = [(_grey(image), int(label), int(own)) for image, label, own in zip(x_qry, y_qry, answers)]
    return draw_episode(support, queries)


def write_analysis(folder: str, report: dict, predictions: Predictions) -> None:
    """Write analysis.json, confusion.png and worst.png into a folder, which is made if needed."""
    analysis, builder = report["analysis"], predictions.builder
    rates, alphabets = _confusion_rates(builder.classes, *_counts(predictions))
    matrix = draw_matrix(rates, alphabets, ("alphabet of the class", "alphabet that it was taken for"))
    both = stacked([matrix, draw_sheet(_pair_lines(builder, analysis["confused"]))])
    worst = draw_sheet(_worst_lines(predictions, [entry["episode"] for entry in analysis["worst_episodes"]]))
    write_together(folder, {CONFUSION: png(both), WORST_EPISODES: png(worst), ANALYSIS: json_file(report)})


def _summary(accuracies):
    mean, interval = mean_and_interval(accuracies)
    return {"accuracy": float(mean), "interval": float(interval)}


def _counts(predictions):
    """How often class i was taken for class j, and how often it could have been: int arrays (classes,
    classes)."""
    size = len(predictions.builder.classes)
    taken, possible = np.zeros((2, size, size), np.int64)
    for index, predicted in enumerate(predictions.predicted):
        numbers = np.array([number for number, _, _ in predictions.builder.draw(index)])
        np.add.at(taken, (numbers[predictions.labels], numbers[predicted]), 1)
        possible[np.ix_(numbers, numbers)] += predictions.builder.k_query
    np.fill_diagonal(taken, 0)
    return taken, possible


def _confused_pairs(names, taken, possible):
    pairs = []
    for flat in np.argsort(-taken, axis=None, kind="stable")[:PAIRS]:
        one, other = np.unravel_index(flat, taken.shape)
        if taken[one, other]:
            pairs.append(
                {
                    "class": names[one],
                    "taken_for": names[other],
                    "times": int(taken[one, other]),
                    "of": int(possible[one, other]),
                }
            )
    return pairs


def _confusion_rates(names, taken, possible):
    """Share of the chances to take a class of one alphabet for another class of one alphabet that were
    mistakes, (alphabets, alphabets); and the alphabets, sorted."""
    own = [alphabet_of(name) for name in names]
    alphabets = sorted(set(own))
    member = np.array([[alphabet == name for name in own] for alphabet in alphabets], np.int64)
    chances = possible * (1 - np.eye(len(names), dtype=np.int64))
    return (member @ taken @ member.T) / np.maximum(member @ chances @ member.T, 1), alphabets


def _pair_lines(builder, pairs):
    """Lines for `draw_sheet`: the first images of the two classes of each pair; without pairs, a line that
    says so."""
    lines = [] if pairs else [(NO_MISTAKE, [])]
    for pair in pairs:
        cells = []
        for name, text in ((pair["class"], "is"), (pair["taken_for"], "taken for")):
            images = builder.images[builder.classes.index(name)][:EXAMPLES]
            cells += [(np.round(image.mean(axis=0)).astype(np.uint8), text) for image in images]
        lines.append((confusion(pair), cells))
    return lines


def _worst_lines(predictions, indices):
    """Lines for `draw_sheet`: of each episode the first support image of each class, then the query images
    that were mistaken."""
    lines = []
    for index in indices:
        x_spt, y_spt, x_qry, _ = predictions.builder[index]
        predicted, labels = predictions.predicted[index], predictions.labels
        firsts = [int(np.argmax(y_spt == label)) for label in range(predictions.builder.n_way)]
        wrong = np.flatnonzero(predicted != labels)
        lines.append(
            (
                f"episode {index}, {np.mean(predicted == labels):.1%} right; support",
                [(_grey(x_spt[first]), str(label)) for label, first in enumerate(firsts)],
            )
        )
        shown = f", the first {MISTAKES}" if len(wrong) > MISTAKES else ""
        lines.append(
            (
                f"{len(wrong)} of {len(labels)} mistaken{shown}",
                [
                    (_grey(x_qry[number]), f"{labels[number]} as {predicted[number]}")
                    for number in wrong[:MISTAKES]
                ],
            )
        )
    return lines


def _grey(image):
    """A network input (C, H, W) in [-1, 1] as uint8 (H, W)."""
    return np.round((image.mean(axis=0) + 1) * 127.5).astype(np.uint8)

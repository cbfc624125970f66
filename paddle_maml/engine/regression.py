"""Sinusoids after training: how the error falls with inner steps and points, and beside it a network that was
trained on all tasks together (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import dataclasses
import os
from typing import Callable

import numpy as np
import paddle
from PIL import Image

from ..data.episodes import meta_batch
from ..data.sinusoid import INPUTS, Sinusoids, sinusoid
from ..files import write_together
from ..learners.maml import MetaLearner
from ..report.pictures import draw_functions, png
from ..report.tables import ANALYSIS, json_file
from .assembly import evaluation_episodes, make_network, training_episodes
from .evaluation import mean_and_interval, score_episodes
from .settings import Settings

POINTS = (5, 10, 20)
INNER_STEPS = 10
# Inner rates that the network of all tasks together may choose from, by its error on validation tasks.
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
CURVES, GRID = 3, 200  # tasks that are drawn, and points of a curve
PICTURE = "sinusoid.png"


def analyse_sinusoids(
    learner: MetaLearner,
    settings: Settings,
    images: Sinusoids,
    val_images: Sinusoids,
    announce: Callable[[str], None],
) -> tuple[dict, Image.Image]:
    """Measure a learner of sinusoids, and a network trained on all tasks together.

    Args:
        learner: a `MetaLearner` with its weights.
        settings: `Settings` of its run.
        images, val_images: `Sinusoids` to test on, and those of validation.
        announce: takes a line before each measurement.

    Returns:
        (analysis, picture): a dict of plain values, and adapted curves beside the truth, a Pillow image.
    """
    announce(f"a network trained on all tasks together, {settings.iterations} meta-iterations")
    joint = train_jointly(settings)
    errors = {rate: _errors(joint, settings, val_images, 10, rate)[:, -1].mean() for rate in RATES}
    joint.inner_lr = min(errors, key=errors.get)
    rows = []
    for name, network in (("MAML", learner), ("all tasks together", joint)):
        for points in POINTS:
            announce(f"{name}, {points} points")
            means, intervals = mean_and_interval(_errors(network, settings, images, points))
            rows.append(
                {
                    "network": name,
                    "points": points,
                    "inner_lr": network.inner_lr,
                    "error_per_step": means.tolist(),
                    "interval_per_step": intervals.tolist(),
                }
            )
    analysis = {"episodes": settings.test_episodes, "seed": settings.seed, "mean_square_errors": rows}
    return analysis, _draw({"MAML": learner, "all tasks together": joint}, settings, images)


def train_jointly(settings: Settings) -> MetaLearner:
    """A network that one loss over all tasks has trained, as a learner: with an inner rate of 0, the query
    loss of MAML is that loss."""
    paddle.seed(settings.seed)
    images = Sinusoids("train")
    learner = MetaLearner(make_network(settings, images), 1, 0.0, order=1, loss=settings.loss)
    optimizer = paddle.optimizer.Adam(settings.meta_lr, parameters=learner.parameters())
    episodes, size = training_episodes(settings, images), settings.meta_batch
    for iteration in range(settings.iterations):
        loss, _ = learner.meta_loss(*meta_batch(episodes, range(iteration * size, (iteration + 1) * size)))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return learner


def regression_table(analysis: dict) -> str:
    """The analysis as lines of text."""
    lines = [f"mean square error with 95 % interval over {analysis['episodes']} tasks, after inner steps", ""]
    shown = (0, 1, 2, 5, 10)
    lines.append(f"{'network':20s} points " + "".join(f"{step:^17d}" for step in shown))
    for row in analysis["mean_square_errors"]:
        cells = [
            f"{row['error_per_step'][step]:.3f} +- {row['interval_per_step'][step]:.3f}" for step in shown
        ]
        lines.append(f"{row['network']:20s} {row['points']:6d} " + "".join(f"{cell:^17s}" for cell in cells))
    return "\n".join(lines)


def write_regression(folder: str, report: dict, picture: Image.Image) -> None:
    """Write analysis.json and sinusoid.png into a folder, which is made if needed."""
    os.makedirs(folder, exist_ok=True)
    write_together(folder, {ANALYSIS: json_file(report), PICTURE: png(picture)})


def _errors(learner, settings, images, points, rate=None):
    """The mean square error of each task after 0 .. 10 inner steps, with so many support points."""
    builder = evaluation_episodes(dataclasses.replace(settings, k_shot=points), images)
    before, learner.inner_lr = learner.inner_lr, learner.inner_lr if rate is None else rate
    try:
        return score_episodes(learner, builder, settings.test_episodes, INNER_STEPS)[0]
    finally:
        learner.inner_lr = before


def _draw(learners, settings, images):
    """Some tasks: the truth, the support points, and the curves of the learners after 10 inner steps."""
    builder = evaluation_episodes(settings, images)
    x = np.linspace(*INPUTS, GRID, dtype=np.float32)
    panels = []
    for task in range(CURVES):
        x_spt, y_spt, _, _ = builder[task]
        lines = {"truth": (x, sinusoid(x, *builder.draw(task)))}
        for name, learner in learners.items():
            lines[name] = x, learner.predict(x_spt, y_spt, x[:, None], steps=INNER_STEPS)[:, 0]
        panels.append((f"task {task}, {len(x_spt)} points, {INNER_STEPS} steps", lines, (x_spt, y_spt)))
    return draw_functions(panels)

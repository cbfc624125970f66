"""From settings to an export: episodes, initial weights and our own traces."""

from __future__ import annotations

import os
from typing import Callable

import numpy as np
import paddle

from ..data.episodes import EpisodeBuilder
from ..data.preprocessing import orient
from ..engine.assembly import (
    choose_device,
    evaluation_episodes,
    load_training_images,
    make_network,
    make_optimizer,
    training_episodes,
)
from ..engine.settings import Settings, flag
from ..errors import UserError
from ..networks.plain_conv4 import EPSILON
from .format import WEIGHTS_AFTER, Export, Trace, identified
from .trace import own_trace

# What version 1 of the format has no words for: the setting, and the value that it must have.
_FIXED = {
    "learner": "maml",
    "network": "conv4",
    "start_from": None,
    "learn_inner_lr": False,
    "adapted": "all",
    "first_order_iterations": 0,
    "multi_step_iterations": 0,
    "reflections": Settings.reflections,
    "random_crops": Settings.random_crops,
    "random_flips": Settings.random_flips,
}
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}  # Paddle's defaults, which training uses


def check_exportable(settings: Settings) -> None:
    """UserError for settings that the format has no words for."""
    for name, value in _FIXED.items():
        if getattr(settings, name) != value:
            raise UserError(
                f"{flag(name)} is {getattr(settings, name)}, but version 1 of the format is for "
                f"{value if value is not None else 'fresh weights'}: choose another --preset."
            )


def export(
    settings: Settings,
    orders: list[int],
    dtypes: list[str],
    folder: str | os.PathLike,
    announce: Callable[[str], None] = print,
) -> None:
    """Write an export with the expected traces of some orders and dtypes.

    Args:
        settings: `Settings`; its iterations and test_episodes are those of the export, its order has no
            effect.
        folder: made if needed.
        announce: takes a line for each piece of the work.
    Raises:
        UserError: settings that the format has no words for, or data that cannot be had.
    """
    check_exportable(settings)
    choose_device(settings, announce)
    made = make_export(settings)
    announce(f"{len(made.episodes['train']['support'])} episodes of training, {settings.test_episodes} tests")
    traces: list[Trace] = []
    for order in orders:
        for dtype in dtypes:
            traces.append(own_trace(made, order, dtype))
            announce(f"order {order}, {dtype}: accuracy {traces[-1].arrays['test_accuracy'].mean():.2%}")
    made.write(folder, traces)


def make_export(settings: Settings) -> Export:
    """The export, without traces, in memory."""
    parts, rule = load_training_images(settings)
    paddle.seed(settings.seed)
    net = make_network(settings, parts["train"])
    weights = {name: np.array(p.numpy()) for name, p in net.named_parameters()}
    count = settings.iterations * settings.meta_batch
    episodes = {
        "train": _episodes(training_episodes(settings, parts["train"]), count),
        "test": _episodes(evaluation_episodes(settings, parts["test"]), settings.test_episodes),
    }
    about = {
        "made_by": "paddle_maml",
        "preset": settings.preset,
        **{name: getattr(settings, name) for name in ("n_way", "k_shot", "k_query", "test_k_query")},
        "inner_steps": settings.inner_steps,
        "test_inner_steps": settings.steps_at_test,
        "inner_lr": float(settings.inner_lr),
        "meta_batch": settings.meta_batch,
        "iterations": settings.iterations,
        "meta_lr": _rates(settings, net),
        "adam": ADAM,
        "architecture": settings.architecture,
        "width": settings.width,
        "in_channels": parts["train"].input_shape[0],
        "image_size": settings.image_size,
        "batch_norm_epsilon": EPSILON,
        "parameters": [
            {"name": name, "shape": list(array.shape), "zero_gradient": name.endswith("conv_bias")}
            for name, array in weights.items()
        ],
        "test_episodes": settings.test_episodes,
        "weights_after": [n for n in WEIGHTS_AFTER if n <= settings.iterations],
        "episodes": {
            "seed": settings.seed,
            "rotations": settings.rotations,
            "dataset": parts["train"].name,
            "split_rule": rule,
            "classes": {part: list(parts[part].classes) for part in episodes},
        },
    }
    return identified(about, weights, episodes)


def _rates(settings, net):
    """Adam's rate in each meta-iteration."""
    _, schedule = make_optimizer(settings, net)
    rates = []
    for iteration in range(settings.iterations):
        if schedule:
            schedule.step(epoch=iteration)
        rates.append(float(schedule.last_lr if schedule else settings.meta_lr))
    return rates


def _episodes(builder: EpisodeBuilder, count):
    """Episodes 0 .. count - 1 as the arrays of train.npz or test.npz. An image that is drawn again, or turned
    otherwise, is a row of `images` once for each way that it is turned."""
    rows, images = {}, []
    support, query, drawn = [], [], []
    for index in range(count):
        sets = builder.draw(index)
        places = []
        for number, turns, chosen in sets:
            for image in chosen:
                key = (number, turns, image)
                if key not in rows:
                    rows[key] = len(rows)
                    images.append(orient(builder.images[number][image], turns))
                places.append(rows[key])
        by_class = np.array(places, np.int32).reshape(len(sets), -1)
        support.append(by_class[:, : builder.k_shot].ravel())
        query.append(by_class[:, builder.k_shot :].ravel())
        drawn.append([[number, turns, *chosen] for number, turns, chosen in sets])
    labels = np.arange(builder.n_way, dtype=np.int32)
    return {
        "images": np.stack(images),
        "support": np.stack(support),
        "support_labels": labels.repeat(builder.k_shot),
        "query": np.stack(query),
        "query_labels": labels.repeat(builder.k_query),
        "drawn": np.array(drawn, np.int32),
        "class_sizes": np.array([len(of_class) for of_class in builder.images], np.int32),
    }

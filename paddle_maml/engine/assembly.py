"""From settings to the parts of a run: images, episodes, learner; and how results say what they were measured
on."""

from __future__ import annotations

import platform

import numpy as np
import paddle

from ..data.episodes import EpisodeBuilder, ImageSet
from ..data.omniglot import load_omniglot
from ..data.splits import split_classes
from ..data.synthetic import draw_synthetic
from ..errors import UserError
from ..learners.maml import MetaLearner
from ..networks.conv4 import MAML
from .device import cores, processor
from .settings import Settings, flag


def load_images(settings: Settings) -> tuple[dict[str, ImageSet], str]:
    """The classes of each part of the split.

    Args:
        settings: `Settings`.
    Returns:
        (parts, rule): dict from "train", "val" and "test" to `ImageSet`, and the name of the split's rule.
    """
    return _load(settings, distortions=0)


def load_training_images(settings: Settings) -> tuple[dict[str, ImageSet], str]:
    """As `load_images`, and the classes of "train" have their distorted copies, which follow the drawers' own
    images."""
    parts, rule = _load(settings, settings.distortions)
    for part in ("val", "test"):
        images = parts[part]
        originals = images.images.shape[1] // (1 + settings.distortions)
        parts[part] = ImageSet(images.name, images.classes, images.images[:, :originals].copy())
    return parts, rule


def _load(settings, distortions):
    how = {
        "preprocessing": settings.preprocessing,
        "image_size": settings.image_size,
        "distortions": distortions,
    }
    if settings.dataset == "synthetic":
        images, rule = draw_synthetic(**how), "synthetic"
    else:
        images, rule = load_omniglot(settings.data_dir, **how), settings.split_rule
    return {
        part: images.subset(classes) for part, classes in split_classes(images.classes, rule).items()
    }, rule


def make_learner(settings: Settings, images: ImageSet) -> MetaLearner:
    """A learner with fresh weights, drawn from Paddle's random state, for images of the given `ImageSet`."""
    net = MAML(
        n_way=settings.n_way,
        in_channels=images.images[0].shape[1],
        width=settings.width,
        image_size=settings.image_size,
        architecture=settings.architecture,
    )
    return MetaLearner(
        net,
        inner_steps=settings.inner_steps,
        inner_lr=settings.inner_lr,
        order=settings.order,
        chunk=settings.chunk,
        learn_inner_lr=settings.learn_inner_lr,
        adapted=settings.adapted,
    )


def make_optimizer(settings, learner):
    """Adam for a learner, the meta-optimizer, and its schedule, None where the rate is constant."""
    schedule = None
    if settings.meta_lr_schedule == "cosine":
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(settings.meta_lr, T_max=settings.iterations)
    rate = schedule or settings.meta_lr
    return paddle.optimizer.Adam(learning_rate=rate, parameters=learner.parameters()), schedule


def meta_loss_options(settings: Settings, iteration: int) -> dict:
    """The options of the learner's `meta_loss` in a meta-iteration."""
    order = 1 if iteration < settings.first_order_iterations else settings.order
    weights = multi_step_weights(iteration, settings.multi_step_iterations, settings.inner_steps)
    return {"order": order, "step_weights": weights}


def multi_step_weights(iteration: int, period: int, inner_steps: int) -> list[float]:
    """Weights of the query losses after 0 .. K inner steps, for `MetaLearner.meta_loss`.

    They begin equal for the steps 1 .. K, and all but the last fall linearly to 0 over `period`
    meta-iterations: the annealing of Antoniou et al. 2019, "How to train your MAML", section 4, without its
    lower bound on the earlier weights.
    """
    earlier = max(0.0, 1 - iteration / period) / inner_steps if period else 0.0
    return [0.0] + [earlier] * (inner_steps - 1) + [1 - earlier * (inner_steps - 1)]


def training_episodes(settings: Settings, images: ImageSet) -> EpisodeBuilder:
    """The `EpisodeBuilder` of training, of an `ImageSet`."""
    return _episodes(settings, images, settings.k_query, rotations=settings.rotations)


def evaluation_episodes(settings: Settings, images: ImageSet, **options) -> EpisodeBuilder:
    """An `EpisodeBuilder` with the number of query images for testing, of an `ImageSet`; options are
    rotations and within_alphabet of `EpisodeBuilder`, which validation and test leave out."""
    return _episodes(settings, images, settings.test_k_query, **options)


def _episodes(settings, images, k_query, **options):
    return EpisodeBuilder(images, settings.n_way, settings.k_shot, k_query, seed=settings.seed, **options)


def held_back_episodes(settings: Settings, images: ImageSet) -> EpisodeBuilder:
    """The episodes of validation or test; their number of query images is a setting of its own there."""
    try:
        return evaluation_episodes(settings, images)
    except UserError as error:
        raise UserError(
            f"In validation and test, where k_query is {flag('test_k_query')}, {settings.test_k_query}: "
            f"{error}"
        ) from None


def environment(device: str) -> dict:
    """Versions and device, as reports and checkpoints state them."""
    return {
        "paddle": paddle.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "device": device,
    }


def describe(result: dict, settings: Settings, images: ImageSet, rule: str, part: str) -> dict:
    """A result of `evaluate` with what it was measured on."""
    return {
        "dataset": images.name,
        "split_rule": rule,
        "split": part,
        "classes": len(images.classes),
        "n_way": settings.n_way,
        "k_shot": settings.k_shot,
        "k_query": settings.test_k_query,
        "inner_steps": settings.steps_at_test,
        "inner_lr": settings.inner_lr,
        "learn_inner_lr": settings.learn_inner_lr,
        "seed": settings.seed,
        **result,
    }

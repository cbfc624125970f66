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
from ..learners.maml import MetaLearner
from ..networks.conv4 import MAML
from .device import cores, processor


def load_images(settings):
    """The classes of each part of the split.

    Args:
        settings: `Settings`.
    Returns:
        (parts, rule): dict from "train", "val" and "test" to `ImageSet`, and the name of the split's rule.
    """
    return _load(settings, distortions=0)


def load_training_images(settings):
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


def make_learner(settings, images):
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


def evaluation_episodes(settings, images, rotations=False, within_alphabet=False):
    """An `EpisodeBuilder` with the number of query images for testing, of an `ImageSet`. The rest is as for
    `EpisodeBuilder`; validation and test leave it out."""
    return EpisodeBuilder(
        images,
        settings.n_way,
        settings.k_shot,
        settings.test_k_query,
        seed=settings.seed,
        rotations=rotations,
        within_alphabet=within_alphabet,
    )


def environment(device):
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


def describe(result, settings, images, rule, part):
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

"""From settings to the parts of a run: images, episodes, learner; and how results say what they were measured
on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import platform
import sys
from typing import Callable, Iterator

import numpy as np
import paddle

from ..data.batches import BatchBuilder, labels_of
from ..data.episodes import Alternating, EpisodeBuilder
from ..data.folder import load_folder
from ..data.images import ImageSet
from ..data.omniglot import load_omniglot
from ..data.sinusoid import Sinusoids
from ..data.splits import PARTS, split_classes
from ..data.synthetic import draw_synthetic
from ..errors import UserError
from ..kernels import native
from ..learners.base import Learner
from ..learners.fine_tuning import FineTuningLearner
from ..learners.lstm import LSTMLearner
from ..learners.maml import MetaLearner
from ..learners.prototypical import PrototypicalLearner
from ..learners.reptile import ReptileLearner
from ..networks.conv4 import MAML, Conv4
from ..networks.mlp import MLP
from .device import cores, processor, select_device
from .settings import SECOND_ORDER, WITH_STEPS, Settings, flag, settings_from_dict

# Numbers of an embedding where the network does not decide it, as the four blocks give of 28x28 pixels.
EMBEDDING = 64


def choose_device(settings: Settings, announce: Callable[[str], None] = print) -> str:
    """Choose the device of a run, and on a CPU load the kernel that computes the four-block network there.

    Args:
        announce: takes a line on why there is no GPU, on the kernel that is compiled, or why there is none.
    Returns:
        The device's name as Paddle gives it.
    Raises:
        UserError: as `select_device`.
    """
    device = select_device(settings.device, announce)
    problem = load_kernel(settings, device, announce)
    if problem:
        announce(f"Computing with Paddle's own operators: {problem}.")
    return device


def load_kernel(settings: Settings, device: str, announce: Callable[[str], None]) -> str | None:
    """Load the native kernel where it is for the network and the device, and compile it if that was not done,
    which is announced. Returns why it cannot be used."""
    wanted = device == "cpu" and settings.network == "conv4" and native.usable(settings.width, 1)
    return native.problem(announce) if wanted else None


def load_images(
    settings: Settings, announce: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, ImageSet], str]:
    """The classes of each part of the split.

    Args:
        settings: `Settings`.
        announce: takes the summary of a folder of images.
    Returns:
        (parts, rule): dict from "train", "val" and "test" to `ImageSet` or `Sinusoids`, and the name of the
            split's rule.
    """
    return _load(settings, 0, announce)


def load_training_images(
    settings: Settings, announce: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, ImageSet], str]:
    """As `load_images`, and the classes of "train" have their distorted copies, which follow the drawers' own
    images.

    Raises:
        UserError: as `load_folder`; a part of a folder has fewer classes than an episode.
    """
    distortions = settings.distortions if settings.dataset in ("omniglot", "synthetic") else 0
    parts, rule = _load(settings, distortions, announce)
    require_classes(settings, parts, "add classes, or divide them in train/, val/ and test/")
    if not distortions:
        return parts, rule
    for part in ("val", "test"):
        images = parts[part]
        originals = images.images.shape[1] // (1 + distortions)
        parts[part] = ImageSet(images.name, images.classes, images.images[:, :originals].copy())
    return parts, rule


def require_classes(settings: Settings, parts: dict[str, ImageSet], way_out: str) -> None:
    """UserError if a part of a folder of images, by name, has fewer classes than an episode; it ends with
    what to do about it."""
    for part, images in parts.items() if settings.of_folder else ():
        if len(images.classes) < settings.n_way:
            counts = ", ".join(f"{name} {len(images.classes)}" for name, images in parts.items())
            found = "1 class" if len(images.classes) == 1 else f"{len(images.classes)} classes"
            lower = "lower it, " if len(images.classes) > 1 else ""
            raise UserError(
                f"n_way is {settings.n_way}, but {part} has {found} of {images.name} ({counts}): {lower}"
                f"{way_out}."
            )


def _load(settings, distortions, announce):
    if settings.dataset == "sinusoid":
        return {part: Sinusoids(part) for part in PARTS}, "seeds"
    if settings.of_folder:
        folder = load_folder(
            settings.folder,
            settings.image_size,
            settings.in_channels,
            settings.split_seed,
            settings.trains_on,
        )
        announce(folder.summary)
        return folder.parts, folder.rule
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


def in_training(settings: Settings) -> Settings:
    """The settings with the classes that an episode of training has."""
    return dataclasses.replace(settings, n_way=settings.classes_in_training)


def make_learner(settings: Settings, images: ImageSet | Sinusoids, training: bool = False) -> Learner:
    """A learner with fresh weights, drawn from Paddle's random state, for what a part of the split holds; if
    it is for training, with what only training needs."""
    net = make_network(settings, images)
    if settings.learner == "fine-tuning":
        return FineTuningLearner(
            net,
            labels_of(images, settings.rotations, settings.reflections) if training else None,
            head=settings.head,
            adapted=settings.adapted,
            steps=settings.fitting_steps,
            rate=settings.inner_lr,
            features=getattr(net, "features", EMBEDDING),
            chunk=settings.chunk,
        )
    if settings.learner == "prototypical":
        return PrototypicalLearner(net, chunk=settings.chunk)
    if settings.learner == "reptile":
        return ReptileLearner(
            net,
            inner_steps=settings.inner_steps,
            inner_lr=settings.inner_lr,
            inner_optimizer=settings.inner_optimizer,
            inner_batch=settings.inner_batch,
            test_inner_batch=settings.test_inner_batch,
            chunk=settings.chunk,
            loss=settings.loss,
        )
    if settings.learner == "lstm":
        features = net.features if settings.network == "conv4" else EMBEDDING
        return LSTMLearner(net, settings.n_way, features, settings.lstm_hidden, settings.chunk)
    return MetaLearner(
        net,
        inner_steps=settings.inner_steps,
        inner_lr=settings.inner_lr,
        order=settings.order,
        chunk=settings.chunk,
        learn_inner_lr=settings.learn_inner_lr,
        adapted="head" if settings.learner == "anil" else settings.adapted,
        loss=settings.loss,
        hessian=settings.hessian,
    )


def input_shape(settings: Settings) -> tuple[int, int, int]:
    """(C, H, W) of the images of a run, known without them."""
    return settings.in_channels, settings.image_size, settings.image_size


def make_network(settings: Settings, images: ImageSet | Sinusoids) -> paddle.nn.Layer:
    """A network with fresh weights: of a classifier, or of an embedding where the learner wants one."""
    shape = images.input_shape
    n_outputs = 1 if settings.dataset == "sinusoid" else EMBEDDING if settings.embeds else settings.n_way
    if settings.own_network:
        return _own_network(settings.network, shape, n_outputs)
    if settings.network == "mlp":
        hidden = tuple(map(int, settings.hidden.split(",")))
        return MLP(math.prod(shape), hidden, n_outputs, settings.batch_norm)
    blocks = (shape[0], settings.width, settings.image_size, settings.architecture)
    return Conv4(*blocks) if settings.embeds else MAML(n_outputs, *blocks)


def _own_network(name, shape, n_outputs):
    """The layer that a function of the user's returns; modules are found in the current folder too."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        layer = getattr(importlib.import_module(module), function)(shape, n_outputs)
    except Exception as error:  # whatever a module of the user's may raise
        what = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{flag('network')} is {name}, which cannot be had ({what}).") from error
    if not isinstance(layer, paddle.nn.Layer):
        kind = type(layer).__name__
        raise UserError(f"{flag('network')} is {name}, which returns a {kind}: return a paddle.nn.Layer.")
    return layer


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


@contextlib.contextmanager
def own_network_may_fail(settings: Settings) -> Iterator[None]:
    """What a learner finds wrong with a network of the user's is the user's to mend."""
    try:
        yield
    except ValueError as error:
        if not settings.own_network:
            raise
        said = _first_line(error).replace(
            "hessian='difference' or order=1", "--hessian difference or --order 1"
        )
        raise UserError(f"{flag('network')} is {settings.network}, but {said}.") from error


def require_own_network(stored: Settings, given: dict) -> None:
    """UserError unless a network of the user's that `Settings` of a run name is named again: what a file says
    is not imported."""
    if stored.own_network and given.get("network") != stored.network:
        raise UserError(
            f"The network is one of the user's own, {stored.network}: if it is yours, name it with "
            f"{flag('network')} {stored.network}."
        )


# The settings that make a network.
NETWORK = (
    "n_way learner lstm_hidden network hidden batch_norm architecture width image_size in_channels".split()
)


def settings_for(of_weights: Settings | None, given: dict) -> Settings:
    """The settings to use weights with: those given, and for the others those of the run that the weights
    are from; without one the defaults.

    Args:
        of_weights: `Settings` of the run, None for a file of weights on its own.

    Raises:
        UserError: they are of another network than the one that was trained; the shapes of weights do not
            tell all. Training may go on with images of another size, but testing with them says nothing of
            what was trained.
    """
    trained = of_weights or Settings()
    require_own_network(trained, given)
    for name in NETWORK[trained.any_n_way :] if of_weights else ():
        if given.get(name, getattr(trained, name)) != getattr(trained, name):
            raise UserError(
                f"{flag(name)} is {given[name]}, but these weights were trained with "
                f"{getattr(trained, name)}: leave it out."
            )
    # The run's own device and number of episodes say nothing about this machine and this evaluation.
    here = {"device": Settings.device, "test_episodes": Settings.test_episodes}
    settings = settings_from_dict({**trained.as_dict(), **here, **given})
    settings.refuse_without_effect(given)
    settings = settings.with_whole_path()
    if settings.learn_inner_lr and "inner_lr" in given:
        raise UserError(
            f"inner_lr is {settings.inner_lr}, but these weights have inner rates of their own: leave it out."
        )
    return settings


def make_optimizer(
    settings: Settings, learner: Learner
) -> tuple[paddle.optimizer.Optimizer, paddle.optimizer.lr.LRScheduler | None]:
    """The meta-optimizer of a learner, and its schedule, None where the rate is constant."""
    schedule, course = None, paddle.optimizer.lr
    if settings.meta_lr_schedule == "cosine":
        schedule = course.CosineAnnealingDecay(settings.meta_lr, T_max=settings.iterations)
    elif settings.meta_lr_schedule == "linear":
        schedule = course.PolynomialDecay(settings.meta_lr, settings.iterations, end_lr=0.0)
    rate = schedule or settings.meta_lr
    kind = paddle.optimizer.SGD if settings.learner == "reptile" else paddle.optimizer.Adam
    return kind(learning_rate=rate, parameters=learner.parameters()), schedule


def meta_loss_options(settings: Settings, iteration: int) -> dict:
    """The options of the learner's `meta_loss` in a meta-iteration."""
    if settings.learner == "reptile":
        # A function of seed and iteration alone: a resumed run draws the same, and so does every process.
        words = [settings.seed % 2**32, settings.seed // 2**32, iteration]
        return {"draws": np.random.RandomState(words)}
    if settings.learner == "lstm":
        return {"iteration": iteration}
    if settings.learner not in SECOND_ORDER:
        return {}
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


def training_episodes(settings: Settings, images: ImageSet) -> EpisodeBuilder | Alternating | BatchBuilder:
    """The episodes of training, of an `ImageSet`; of a learner that trains without episodes the
    `BatchBuilder`."""
    changes = {
        "rotations": settings.rotations,
        "reflections": settings.reflections,
        "crops": settings.random_crops,
        "flips": settings.random_flips,
    }
    if settings.learner == "fine-tuning":
        return BatchBuilder(images, settings.batch_size, settings.seed, **changes)
    settings = in_training(settings)
    builders = [
        _episodes(settings, images, settings.k_query, within_alphabet=within, **changes)
        for within in {"never": [False], "always": [True], "mixed": [False, True]}[settings.within_alphabet]
    ]
    return builders[0] if len(builders) == 1 else Alternating(*builders)


def evaluation_episodes(settings: Settings, images: ImageSet, **options: bool) -> EpisodeBuilder:
    """An `EpisodeBuilder` with the number of query images for testing, and with classes of one alphabet where
    the settings test so, of an `ImageSet`; options are rotations and within_alphabet of `EpisodeBuilder`."""
    options = {"within_alphabet": settings.test_within_alphabet, **options}
    return _episodes(settings, images, settings.test_k_query, **options)


def _episodes(settings, images, k_query, **options):
    if isinstance(images, Sinusoids):
        return images.episodes(settings.k_shot, k_query, settings.seed)
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
        # It decides the bits of a result.
        "native_kernel": device == "cpu" and native.problem() is None,
    }


def describe(result: dict, settings: Settings, images: ImageSet, rule: str, part: str) -> dict:
    """A result of `evaluate` with what it was measured on."""
    steps = {}
    if settings.learner in WITH_STEPS:
        steps = {
            "inner_steps": settings.steps_at_test,
            "inner_lr": settings.inner_lr,
            "learn_inner_lr": settings.learn_inner_lr,
        }
    if settings.learner == "fine-tuning":
        steps = {
            "head": settings.head,
            "adapted": settings.adapted,
            "inner_steps": settings.fitting_steps,
            "inner_lr": settings.inner_lr,
        }
    special = {
        name: getattr(settings, f"test_{name}")
        for name in ("inner_lr_factor", "within_alphabet")
        if getattr(settings, f"test_{name}") != getattr(Settings, f"test_{name}")
    }
    return {
        "learner": settings.learner,
        "dataset": images.name,
        "split_rule": rule,
        "split": part,
        "classes": len(images.classes),
        "n_way": settings.n_way,
        "k_shot": settings.k_shot,
        "k_query": settings.test_k_query,
        **steps,
        **special,
        "seed": settings.seed,
        **result,
    }

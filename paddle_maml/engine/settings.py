"""Every setting of a run: name, default, unit, help text and check in one place.

To add a setting, add one field to `Settings`; the command line, the report and the checkpoints follow from
it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from typing import Any, Iterable

from ..errors import UserError
from .presets import PRESETS

# What is typed for None, where a preset or the run that is resumed has a value.
NOTHING = "none"

# "folder" alone stands in presets for one that the user is to name.
DATASETS, FOLDER = ("omniglot", "synthetic", "sinusoid", "folder"), "folder:"


def _setting(default, help, unit="", check=None, may_change=False):
    """A dataclass field.

    Args:
        default: the value where neither preset nor command line gives one; None means "decided at run time"
            and is always allowed.
        help: what the setting does, for `--help`.
        unit: what the number counts or measures.
        check: function from a value to None, or to the end of a sentence that says what is wrong with it.
        may_change: whether a resumed run may have another value than the checkpoint.
    """
    metadata = {"help": help, "unit": unit, "check": check, "may_change": may_change}
    return dataclasses.field(default=default, metadata=metadata)


def _number(default, help, unit, low, high, may_change=False):
    """A whole number within a range. The upper ends are far above all use and below what would fill a
    machine's memory unseen."""

    def check(value):
        if value < low:
            return f"must be at least {low}"
        return None if value <= high else f"must be at most {high}"

    return _setting(default, help, unit, check, may_change)


def _rate(default, help):
    def check(value):
        return None if 2.0**-126 <= value < 2.0**128 else "must be a finite number above 0 that float32 holds"

    return _setting(default, help, check=check)


def _choice(help, *choices, default=...):
    """One of some values; the first is the default, unless another one is given."""

    def check(value):
        return None if value in choices else "must be one of " + ", ".join(map(str, choices))

    check.choices = choices
    return _setting(choices[0] if default is ... else default, help, check=check)


def _decay(value):
    return None if 0 <= value < 1 else "must be from 0 to below 1"


def _units(text):
    sound = all(re.fullmatch("[1-9][0-9]{0,4}", number) for number in text.split(","))
    return None if sound else "must be whole numbers from 1 to 99999 with commas between them"


def _dataset(text):
    known = text in DATASETS or (text.startswith(FOLDER) and text != FOLDER)
    return None if known else f"must be {', '.join(DATASETS)}, or folder:PATH for a folder of your own images"


def _network(text):
    known = text in ("conv4", "mlp") or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text)
    return None if known else "must be conv4, mlp, or MODULE:FUNCTION for a network of your own"


# What is counted, and its range.
_IMAGES = ("images per class", 1, 1000)
_ITERATIONS, _FIRST_PART = ("meta-iterations", 1, 10**9), ("meta-iterations", 0, 10**9)


# The learners that adapt by gradient steps, and of these the ones whose meta-gradient goes through the steps.
WITH_STEPS, SECOND_ORDER = ("maml", "anil", "reptile"), ("maml", "anil")
# Those whose network embeds, those whose weights know no number of classes, and those that such settings
# belong to which do not belong to all.
_EMBED, _ANY_N_WAY = ("prototypical", "lstm", "fine-tuning"), ("prototypical", "fine-tuning")
# Steps that fit a new head where the settings do not say how many.
FITTING_STEPS = 100
# Where there are more inner steps, tests score the last one alone.
MOST_STEPS_SCORED = 10
_OF_LEARNERS = {
    **dict.fromkeys(["order", "hessian", "learn_inner_lr", "first_order_iterations"], SECOND_ORDER),
    **dict.fromkeys(["multi_step_iterations", "start_inner_lr_factor"], SECOND_ORDER),
    **dict.fromkeys(["inner_lr", "test_inner_steps"], (*WITH_STEPS, "fine-tuning")),
    **dict.fromkeys(["inner_steps", "test_inner_lr_factor"], WITH_STEPS),
    "adapted": ("maml", "fine-tuning"),
    "train_n_way": (*SECOND_ORDER, "prototypical"),
    "within_alphabet": (*WITH_STEPS, "prototypical", "lstm"),
    **dict.fromkeys(["inner_optimizer", "inner_batch", "test_inner_batch"], ("reptile",)),
    "lstm_hidden": ("lstm",),
    **dict.fromkeys(["head", "batch_size"], ("fine-tuning",)),
}

_OF_IMAGES = """
    rotations reflections random_crops random_flips distortions n_way train_n_way within_alphabet
    test_within_alphabet image_size in_channels preprocessing split_rule split_seed data_dir
""".split()
_OF_FOLDER = ("split_seed", "in_channels")
_OF_OMNIGLOT = "split_rule preprocessing distortions data_dir".split()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one run of train.py does. The defaults are the preset omniglot-5way-1shot."""

    preset: str = _setting(
        "omniglot-5way-1shot",
        "named set of settings to start from, which further options override; of another learner the one for "
        "its task, such as reptile-5way-1shot",
    )

    dataset: str = _setting(
        "omniglot",
        "omniglot; synthetic: drawn characters that need no download; folder:PATH: images of your own, in a "
        "folder for each class; or sinusoid: the regression of Finn et al. 2017",
        check=_dataset,
    )
    data_dir: str = _setting(
        None,
        "folder that holds Omniglot; default: OMNIGLOT_DIR, then data/, then a download",
        "path",
        may_change=True,
    )
    split_rule: str = _choice(
        "rule that divides Omniglot's classes into train, val and test; drawn characters have their own",
        "competition",
        "vinyals",
        "lake",
        "mamlpp",
    )
    split_seed: int = _number(
        0,
        "decides which classes of a folder are for train, val and test, unless it has folders of these names",
        "",
        0,
        2**64 - 1,
    )
    preprocessing: str = _choice("rule that shrinks the 105x105 drawings", "competition", "antialias")
    rotations: bool = _setting(
        False,
        "training classes rotated by 90, 180 and 270 degrees count as further classes (Santoro et al. 2016)",
    )
    reflections: bool = _setting(
        False,
        "training classes mirrored left to right count as further classes, with rotations eight of one",
    )
    random_crops: bool = _setting(
        False, "training images moved at random by up to a tenth of their side, the edge repeated"
    )
    random_flips: bool = _setting(False, "training images mirrored at random, left to right")
    distortions: int = _number(
        0,
        "distorted copies of each training image, which count as further images of its class (after Koch et "
        "al. 2015)",
        "copies",
        0,
        20,
    )

    n_way: int = _number(5, "classes in an episode", "classes", 2, 10000)
    train_n_way: int = _number(
        None,
        "classes in an episode of training; of a learner with a linear layer at least n_way, whose outputs "
        "are then kept alone; default: n_way",
        "classes",
        2,
        10000,
    )
    within_alphabet: str = _choice(
        "whether the classes of a training episode are of one alphabet; mixed: in every other episode",
        "never",
        "always",
        "mixed",
    )
    k_shot: int = _number(1, "support images of each class", *_IMAGES)
    k_query: int = _number(15, "query images of each class in training", *_IMAGES)

    learner: str = _choice(
        "maml; anil: MAML that adapts the last layer alone; reptile: towards the weights that training on a "
        "task ends with; prototypical: the nearest class mean in an embedding; lstm: reads the support set, "
        "then answers; fine-tuning: a classifier over all training classes, and a new head for a new task "
        "(docs/learners.md)",
        "maml",
        "anil",
        "reptile",
        "prototypical",
        "lstm",
        "fine-tuning",
    )
    head: str = _choice(
        "of fine-tuning: linear, or cosine, which sees the directions of features and weights (Chen et al. "
        "2019, Baseline and Baseline++)",
        "linear",
        "cosine",
    )
    batch_size: int = _number(
        64,
        "of fine-tuning: labelled images in each of the meta_batch batches of a training step",
        "images",
        1,
        100000,
    )
    lstm_hidden: int = _number(150, "of lstm: the units of its state", "units", 1, 65536)
    network: str = _setting(
        "conv4",
        "conv4: four convolutional blocks; mlp: a perceptron on flat images, or on numbers; MODULE:FUNCTION: "
        "a network of your own, the layer that FUNCTION(input shape, number of outputs) returns",
        check=_network,
    )
    hidden: str = _setting(
        "256,128,64,64", "of mlp: the units of its hidden layers", "units, with commas", _units
    )
    batch_norm: bool = _setting(True, "of mlp: batch norm in the hidden layers")
    architecture: str = _choice(
        "pool: max-pooling after each block; stride: Finn's stride-2 convolutions", "pool", "stride"
    )
    width: int = _number(64, "channels of each convolution", "channels", 1, 4096)
    image_size: int = _number(28, "height and width of the network's input", "pixels", 16, 512)
    in_channels: int = _choice("channels of the images of a folder: 1, grey, or 3, colour", 1, 3)

    start_from: str = _setting(
        None,
        "weights to start from: a run folder, a file, or the name of weights that come with the library, "
        "also those for more classes (the first n_way are taken) or other inner steps; default, where the "
        "preset has no other, and none: fresh ones",
        "path or name",
    )
    start_inner_lr_factor: float = _rate(
        1.0,
        "learned inner rates of the weights to start from, as a multiple; with fewer classes an image counts "
        "for more in the mean loss of a support set",
    )

    order: int = _choice("1: first-order MAML; 2: exact meta-gradient through the inner steps", 1, 2)
    inner_steps: int = _number(5, "gradient steps on the support set in training", "steps", 1, 1000)
    inner_lr: float = _rate(0.1, "inner learning rate, for the mean support loss")
    inner_optimizer: str = _choice(
        "of reptile: what takes the inner steps, sgd, or adam with beta1 = 0", "sgd", "adam"
    )
    inner_batch: int = _number(
        None,
        "of reptile: images in the mini-batch of an inner step; default: all of the episode in training, the "
        "support set in validation and test",
        "images",
        1,
        10**6,
    )
    test_inner_batch: int = _number(
        None, "of reptile: the same in validation and test; default: inner_batch", "images", 1, 10**6
    )
    learn_inner_lr: bool = _setting(
        False, "learn one inner rate for each parameter tensor and step, from inner_lr on (MAML++'s LSLR)"
    )
    hessian: str = _choice(
        "how order 2 gets its Hessian-vector products: exact, or difference, by central differences",
        "exact",
        "difference",
    )
    adapted: str = _choice(
        "parameters that the inner loop changes, or fine-tuning; head: the last layer alone (ANIL)",
        "all",
        "head",
    )
    first_order_iterations: int = _number(
        0, "first part of training in which order is 1 (MAML++'s derivative-order annealing)", *_FIRST_PART
    )
    multi_step_iterations: int = _number(
        0,
        "first part of training in which the losses after earlier inner steps count too, less and less "
        "(MAML++'s multi-step loss)",
        *_FIRST_PART,
    )
    test_inner_steps: int = _number(
        None,
        f"inner steps in validation and test; default: inner_steps, of fine-tuning {FITTING_STEPS}",
        "steps",
        0,
        1000,
    )
    test_inner_lr_factor: float = _rate(
        1.0, "inner rates in validation and test, as a multiple of training's"
    )

    meta_batch: int = _number(32, "episodes in a meta-batch", "episodes", 1, 4096)
    iterations: int = _number(
        10000, "length of training; with a schedule of meta_lr also its period", *_ITERATIONS, True
    )
    meta_lr: float = _rate(
        0.001,
        "learning rate of the meta-optimizer: Adam; of reptile plain gradient descent (its step epsilon)",
    )
    meta_lr_schedule: str = _choice(
        "course of meta_lr; cosine falls to 0 at the end (Loshchilov and Hutter 2017; in MAML++ too), and so "
        "does linear (Nichol et al. 2018)",
        "constant",
        "cosine",
        "linear",
    )

    val_every: int = _number(
        1000, "distance between validations; the best validated weights are kept", *_ITERATIONS
    )
    val_episodes: int = _number(200, "episodes of a validation, always the same ones", "episodes", 2, 10**6)
    test_episodes: int = _number(1000, "episodes of the test at the end", "episodes", 2, 10**6, True)
    test_k_query: int = _number(15, "query images of each class in validation and test", *_IMAGES)
    test_within_alphabet: bool = _setting(
        False, "the classes of an episode of validation and test are of one alphabet"
    )
    test_statistics: str = _choice(
        "what batch norm knows when a query image is classified in validation and test. query: the whole "
        "query set; support: the support set alone; one: the support set and that image; population: "
        "training images; default: the first of the learner's",
        "query",
        "support",
        "one",
        "population",
        default=None,
    )
    average_weights: float = _setting(
        0.0,
        "decay of a moving average of the weights over meta-iterations, which is validated, kept and tested "
        "in their place; such as 0.999, or 0 for none",
        check=_decay,
    )
    keep_best: int = _number(
        1, "the best validations whose weights are kept, for eval.py --ensemble", "validations", 1, 100, True
    )

    seed: int = _number(0, "decides initial weights and episodes", "", 0, 2**64 - 1)
    device: str = _setting(
        "auto", "auto, cpu, or gpu:0 and so on; auto takes a GPU that works, else the CPU", may_change=True
    )
    processes: int = _number(
        None,
        "processes that share the tasks of a meta-batch; default: the number of cores on a CPU, 1 on a GPU",
        "processes",
        1,
        256,
        may_change=True,
    )
    chunk: int = _number(
        None, "tasks computed side by side; default: what suits the device", "tasks", 1, 4096, True
    )

    output: str = _setting(None, "run folder; default: runs/ and the preset's name", "path", may_change=True)
    checkpoint_every: int = _number(100, "distance between checkpoints", *_ITERATIONS, may_change=True)
    log_every: int = _number(10, "distance between rows of metrics.csv", *_ITERATIONS)
    visualdl: bool = _setting(
        False,
        "also write metrics, settings and pictures of episodes for VisualDL, to visualdl/ in the run folder",
        may_change=True,
    )
    resume: bool = _setting(False, "continue the run in the output folder", may_change=True)

    def check(self) -> None:
        """Refuse values of the wrong type or range.

        Raises:
            UserError: names the first setting that is wrong or has no effect, its value, and what is allowed.
        """
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kind_of(field)
            if value is None and field.default is None:
                continue
            if type(value) is not kind and (kind, type(value)) != (float, int):
                raise UserError(f"{field.name} is {value!r}, but must be of type {kind.__name__}.")
            wrong = what_is_wrong(field, value)
            if wrong:
                raise UserError(f"{field.name} is {value!r}, but {wrong}.")
        if self.dataset == "sinusoid" and self.embeds:
            raise UserError(f"learner is '{self.learner}', but sinusoids have no classes: use maml or anil.")
        if self.dataset == "sinusoid" and self.network == "conv4":
            raise UserError("network is 'conv4', but sinusoids are no images: use mlp.")
        if not self.embeds and self.classes_in_training < self.n_way:
            raise UserError(
                f"train_n_way is {self.train_n_way}, but must be at least n_way, {self.n_way}: the test "
                "needs as many outputs."
            )
        if self.own_network and not self.embeds and self.classes_in_training > self.n_way:
            raise UserError(
                f"train_n_way is {self.train_n_way}, but which outputs of a network of your own are to be "
                "kept for the test is not known: leave it out."
            )
        if self.learner == "fine-tuning" and self.head == "linear" and self.test_inner_steps == 0:
            raise UserError("test_inner_steps is 0, but a new linear head knows nothing: take more.")

    def refuse_without_effect(self, given: dict) -> None:
        """UserError for the first of the settings that a user gives that does nothing: who gives it expects
        an effect. What a preset or a run has beside them may do nothing, and None is not given."""
        for name, useless, why in (
            ("multi_step_iterations", self.inner_steps == 1, "with 1 inner step there is no earlier loss"),
            ("first_order_iterations", self.order == 1, "order is 1 all the way"),
            ("hessian", self.order == 1, "order 1 has no Hessian"),
            ("start_inner_lr_factor", not self.start_from, "training starts from fresh weights"),
            ("start_inner_lr_factor", not self.learn_inner_lr, "no inner rates are learned"),
            ("hidden", self.network != "mlp", "the network is not mlp"),
            ("batch_norm", self.network != "mlp", "the network is not mlp"),
            ("architecture", self.network != "conv4", "the network is not conv4"),
            ("width", self.network != "conv4", "the network is not conv4"),
            ("k_query", self.learner == "fine-tuning", "fine-tuning trains without episodes"),
            *((name, self.dataset == "sinusoid", "sinusoids are no images") for name in _OF_IMAGES),
            *(
                (name, self.learner not in learners, f"the learner is {self.learner}")
                for name, learners in _OF_LEARNERS.items()
            ),
            *((name, self.of_folder, "the images are your own") for name in _OF_OMNIGLOT),
            *((name, not self.of_folder, "the dataset is no folder") for name in _OF_FOLDER),
            ("data_dir", self.dataset == "synthetic", "the characters are drawn and not read"),
        ):
            if useless and given.get(name) is not None:
                raise UserError(f"{name} is {given[name]}, but {why}: leave it out.")

    def as_dict(self) -> dict:
        """The settings as plain values, for reports and checkpoints."""
        return dataclasses.asdict(self)

    def portable(self) -> Settings:
        """The same settings without what belongs to one machine and not to the result: device, processes, and
        where folders lie."""
        local = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.metadata["may_change"]
            and field.name not in ("iterations", "test_episodes", "output", "keep_best")
        }
        if self.start_from and os.path.dirname(self.start_from):
            # A path, and no name of weights that come with the library: it must not look like one.
            local["start_from"] = _in_runs(self.start_from)
        if self.of_folder:
            local["dataset"] = self.trains_on
        # Named, so that runs of one preset do not get in each other's way, and that others can start from
        # them.
        folder = _in_runs(self.run_folder)
        local["output"] = None if folder == f"runs/{self.preset}" else folder
        return dataclasses.replace(self, **local)

    def command(self) -> str:
        """The command line that trains with these settings, anywhere: the preset, and what differs from
        it."""
        portable, preset = self.portable(), settings_from_preset(self.preset).portable()
        parts = ["python", "train.py", flag("preset"), self.preset]
        for field in dataclasses.fields(self):
            value = getattr(portable, field.name)
            if value == getattr(preset, field.name):
                continue
            if type(value) is bool:
                parts.append(flag(field.name) if value else flag("no_" + field.name))
            else:
                parts += [flag(field.name), NOTHING if value is None else str(value)]
        return shlex.join(parts)

    @property
    def trains_on(self) -> str:
        """The data set and the rule that divides its classes, such as "omniglot competition": it says which
        classes training sees. A folder has its name and not its path, "folder:birds"."""
        if self.dataset == "omniglot":
            return f"{self.dataset} {self.split_rule}"
        return FOLDER + os.path.basename(self.folder) if self.dataset.startswith(FOLDER) else self.dataset

    @property
    def of_folder(self) -> bool:
        """Whether the images are the user's own."""
        return self.dataset.split(":")[0] == "folder"

    @property
    def folder(self) -> str:
        """The absolute path of the folder of images; raises UserError where none is named."""
        if not self.dataset.startswith(FOLDER):
            raise UserError(
                f"{flag('dataset')} is {self.dataset}, but which folder of images is not said: name it, as "
                f"in {flag('dataset')} folder:PATH."
            )
        return os.path.abspath(os.path.expanduser(self.dataset[len(FOLDER) :]))

    def with_whole_path(self) -> Settings:
        """The same settings with the absolute path of the folder of images, where they are of one; raises
        UserError where none is named."""
        return dataclasses.replace(self, dataset=FOLDER + self.folder) if self.of_folder else self

    @property
    def own_network(self) -> bool:
        """Whether the network is the user's."""
        return ":" in self.network

    @property
    def loss(self) -> str:
        """The loss of the tasks, as `learners.base.Learner` takes it."""
        return "mean-square" if self.dataset == "sinusoid" else "cross-entropy"

    @property
    def embeds(self) -> bool:
        """Whether the learner's network makes embeddings."""
        return self.learner in _EMBED

    @property
    def classes_in_training(self) -> int:
        """Classes in an episode of training."""
        more = self.learner in _OF_LEARNERS["train_n_way"]
        return (more and self.train_n_way) or self.n_way

    @property
    def any_n_way(self) -> bool:
        """Whether the learner's weights serve tasks of any number of classes."""
        return self.learner in _ANY_N_WAY

    @property
    def steps_at_test(self) -> int | None:
        """Inner steps in validation and test; None where the learner has none."""
        if self.learner not in WITH_STEPS:
            return None
        return self.inner_steps if self.test_inner_steps is None else self.test_inner_steps

    @property
    def every_step_at_test(self) -> bool:
        """Whether a test scores the query set after every inner step: with dozens of them, as Reptile has,
        that would be most of the test."""
        return (self.steps_at_test or 0) <= MOST_STEPS_SCORED

    @property
    def fitting_steps(self) -> int:
        """Steps that fit a new head."""
        return FITTING_STEPS if self.test_inner_steps is None else self.test_inner_steps

    @property
    def run_folder(self) -> str:
        """Where the run's files go."""
        return self.output or f"runs/{self.preset}"


def _in_runs(path):
    """A run folder of the same name, or the same checkpoint in it, where runs are kept by default."""
    parts = os.path.abspath(path).split(os.sep)
    in_checkpoint = [number for number, part in enumerate(parts) if number and part.startswith("checkpoint-")]
    return "/".join(["runs", *parts[in_checkpoint[-1] - 1 if in_checkpoint else -1 :]])


# The first setting of each group, in the order of the fields; help texts are divided so.
_GROUPS = {
    "dataset": "data",
    "n_way": "task",
    "learner": "learner",
    "meta_batch": "training",
    "output": "output",
}


def group_of(name: str) -> str:
    """The group of settings that one belongs to: data, task, learner, training or output."""
    group = "data"
    for field in dataclasses.fields(Settings):
        group = _GROUPS.get(field.name, group)
        if field.name == name:
            return group
    raise KeyError(name)


def nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else "see --help for the list."


def settings_from_preset(preset: str | None = None, **overrides: Any) -> Settings:
    """Settings of a preset with some values replaced.

    Args:
        preset: a name in `PRESETS`; None: that of the learner which the overrides name, if there is one for
            it, for their n_way and k_shot if possible, sinusoid for this data set, and else
            omniglot-5way-1shot.
        overrides: values for fields of `Settings`.
    Returns:
        Settings, checked.
    Raises:
        UserError: an unknown preset, an unknown setting or a wrong value.
    """
    preset = preset or _preset_of(**overrides)
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}: {nearest(preset, PRESETS)}")
    settings = settings_from_dict({**PRESETS[preset], **overrides, "preset": preset})
    settings.refuse_without_effect(overrides)
    return settings


def _preset_of(
    dataset=None, learner=Settings.learner, n_way=Settings.n_way, k_shot=Settings.k_shot, **others
):
    """What suits MAML does not suit every learner: Reptile's meta_lr is 1."""
    if dataset == "sinusoid":
        return dataset
    names = f"{learner}-{n_way}way-{k_shot}shot", f"{learner}-5way-1shot", learner
    return next((name for name in names if name in PRESETS), Settings.preset)


def settings_from_dict(values: dict) -> Settings:
    """Settings from plain values, as a checkpoint or report holds them; raises UserError for unknown names
    and wrong values."""
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in values:
        if name not in names:
            raise UserError(f"There is no setting {name!r}: {nearest(str(name), names)}")
    settings = Settings(**values)
    settings.check()
    return settings


def flag(name: str) -> str:
    """The command-line option of a setting: `--inner-lr` for inner_lr."""
    return "--" + name.replace("_", "-")


def kind_of(field: dataclasses.Field) -> type:
    """The type of a setting's values."""
    return {"str": str, "int": int, "float": float, "bool": bool}[field.type]


def what_is_wrong(field: dataclasses.Field, value: Any) -> str | None:
    """The end of a sentence about a value of the right type, or None."""
    check = field.metadata["check"]
    return check(value) if check else "must not be empty" if value == "" else None

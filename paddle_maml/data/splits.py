"""Which classes are for training, validation and testing: rules over class names, never over the order of a
file system.

`python -m paddle_maml splits FOLDER` writes the Omniglot splits as readable lists, as they stand in
`data/splits`.
"""

from __future__ import annotations

import random
from typing import Collection

import numpy as np

from ..errors import UserError
from .draws import Draws, philox_words
from .images import alphabet_of
from .omniglot import BACKGROUND, EVALUATION, class_names

PARTS = ("train", "val", "test")
VINYALS_VALIDATION = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")


def split_classes(classes: Collection[str], rule: str) -> dict[str, list[str]]:
    """Divides classes into training, validation and test classes.

    Args:
        classes: names, "Alphabet/characterNN", in any order; for all rules but "synthetic" all of Omniglot's.
        rule: "competition" (973/325/325), "vinyals" (1028/172/423), "lake" (792/172/659), "mamlpp"
            (1150/50/423) or "synthetic" (by alphabet, 60/20/20 %).

    Returns:
        {"train": [...], "val": [...], "test": [...]}, in the order the rule gives.

    Raises:
        UserError: unknown rule, or classes missing or unknown to it.
    """
    if rule not in RULES:
        raise UserError(f'The split is "{rule}", but must be one of {", ".join(RULES)}.')
    return dict(zip(PARTS, RULES[rule](classes)))


def _competition(classes):
    """The split of the competition reproduction.

    All names sorted as if in upper case, shuffled by Python's random.Random(1).shuffle, cut into 973, 325 and
    325. The published code shuffled a directory listing, which on its author's machine ignored case; this
    rule gives the same split everywhere.
    """
    _require_omniglot(classes)
    names = sorted(classes, key=str.upper)
    random.Random(1).shuffle(names)
    return names[:973], names[973:1298], names[1298:]


def _vinyals(classes):
    """The split that papers after Vinyals et al. (2016) use.

    Background classes sorted by name, then evaluation classes sorted by name; the last 423 (from
    Gurmukhi/character42 on) are for testing; of the others the alphabets Armenian, Bengali, Early_Aramaic,
    Hebrew and Mkhedruli_(Georgian) are for validation, and the rest, sorted by name, for training.
    """
    _require_omniglot(classes)
    names = class_names(BACKGROUND) + class_names(EVALUATION)
    train = [name for name in sorted(names[:1200]) if alphabet_of(name) not in VINYALS_VALIDATION]
    val = [name for name in names[:1200] if alphabet_of(name) in VINYALS_VALIDATION]
    return train, val, names[1200:]


def _lake(classes):
    """Omniglot's own division (Lake et al. 2015): what is learned before is learned from the 30 alphabets of
    images_background, and the 20 of images_evaluation are for testing.

    Of the 30 the alphabets Armenian, Bengali, Early_Aramaic, Hebrew and Mkhedruli_(Georgian), which Vinyals
    et al. hold back too, are for validation, and the other 25 for training, each sorted by name. All five
    have more than 20 characters, as the alphabets of the test have 20 or more.
    """
    _require_omniglot(classes)
    background = sorted(class_names(BACKGROUND))
    train = [name for name in background if alphabet_of(name) not in VINYALS_VALIDATION]
    val = [name for name in background if alphabet_of(name) in VINYALS_VALIDATION]
    return train, val, sorted(class_names(EVALUATION))


def _mamlpp(classes):
    """The split of MAML++ (Antoniou et al. 2019), as its published code makes it with val_seed 0.

    All names sorted, their numbers 0, 1, ... shuffled by NumPy's RandomState(985773).shuffle, which 0 is the
    seed of there (RandomState(0).randint(1, 999999)), cut into 1150, 50 and 423.
    """
    _require_omniglot(classes)
    names, order = sorted(classes), np.arange(len(classes), dtype=np.int32)
    np.random.RandomState(985773).shuffle(order)
    names = [names[number] for number in order]
    return names[:1150], names[1150:1200], names[1200:]


def _synthetic(classes):
    """Whole alphabets in sorted order: a fifth for testing, a fifth for validation (at least one each), the
    rest for training."""
    alphabets = sorted({alphabet_of(name) for name in classes})
    if len(alphabets) < 3:
        raise UserError(
            f"The synthetic split needs at least 3 alphabets, one for each part, not {len(alphabets)}."
        )
    fifth = max(1, len(alphabets) // 5)
    cuts = alphabets[: -2 * fifth], alphabets[-2 * fifth : -fifth], alphabets[-fifth:]
    return tuple([name for name in sorted(classes) if alphabet_of(name) in part] for part in cuts)


# The index of the words that divide classes: no episode has it.
_DIVISION = 2**64 - 1


def split_by_seed(classes: Collection[str], seed: int) -> dict[str, list[str]]:
    """Divides classes of any names at random, into 60, 20 and 20 %.

    The rule, complete enough to make the same split in any language; choose and words are those of draws.py:
    the names, sorted by code points, in the order choose(n, n) with the words of the key (seed, 2**64 - 1);
    the first n // 5 are for testing, the next n // 5 for validation, the others for training.

    Args:
        classes: names, each once, in any order.
        seed: 0 .. 2**64 - 1.

    Returns:
        {"train": [...], "val": [...], "test": [...]}, each sorted.
    """
    names, fifth = sorted(classes), len(classes) // 5
    order = [names[i] for i in Draws(philox_words(seed, _DIVISION)).choose(len(names), len(names))]
    cuts = order[2 * fifth :], order[fifth : 2 * fifth], order[:fifth]
    return {part: sorted(cut) for part, cut in zip(PARTS, cuts)}


RULES = {
    "competition": _competition,
    "vinyals": _vinyals,
    "lake": _lake,
    "mamlpp": _mamlpp,
    "synthetic": _synthetic,
}
OMNIGLOT_RULES = ("competition", "vinyals", "lake", "mamlpp")


def _require_omniglot(classes):
    expected = class_names()
    missing, unknown = sorted(set(expected) - set(classes)), sorted(set(classes) - set(expected))
    if missing or unknown:
        raise UserError(
            f"This split is for the {len(expected)} Omniglot classes, but {len(missing)} are missing and "
            f"{len(unknown)} are unknown, the first is {(missing + unknown)[0]}."
        )
    if len(classes) != len(expected):
        raise UserError(
            f"This split is for the {len(expected)} Omniglot classes, but {len(classes)} were given, some "
            "of them twice."
        )


def format_split(rule: str) -> str:
    """The Omniglot split of a rule as text: the rule as a comment, then a section for each part with a class
    on each line."""
    lines = [f"# {line.strip()}".rstrip() for line in RULES[rule].__doc__.strip().splitlines()]
    for part, names in split_classes(class_names(), rule).items():
        lines += ["", f"[{part}]  # {len(names)} classes", *names]
    return "\n".join(lines) + "\n"

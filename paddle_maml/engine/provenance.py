"""Where weights come from and what they were trained on; those of the library, and their cards."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import typing
from pathlib import Path
from typing import Iterator

from ..data.folder_listing import list_folder
from ..data.omniglot import class_names
from ..data.splits import OMNIGLOT_RULES, split_classes
from ..errors import UserError
from ..files import digest_of
from . import checkpoint
from .plain_data import read_bytes
from .results import read_report
from .settings import Settings, flag, settings_from_dict
from .weights import WeightsFile

# NAME.pdparams, and its card NAME.json: the report of its run, with the SHA-256 of the weights.
SHELF = Path(__file__).parent.parent / "pretrained"

# In the place of what weights were trained on: of a file on its own nobody knows it.
UNKNOWN = "unknown"


class Origin(typing.NamedTuple):
    """Where weights come from."""

    settings: Settings  # of their run
    # What their run trains on (`Settings.trains_on`), and what the weights that it started from were trained
    # on; or UNKNOWN.
    trained_on: list
    listing_sha256: str = ""  # of a run on a folder of images: `ImageSet.listing_sha256`


def origin_of(settings: Settings, stored: dict) -> Origin:
    """The `Origin` of a run's weights from its `Settings` and a dict that it left, states or report; older
    ones do not say what the weights that they started from were trained on."""
    names = stored.get("trained_on", [UNKNOWN] if stored.get("start_sha256") else [])
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    trained_on = sorted({settings.trains_on, *(names if sound else [UNKNOWN])})
    return Origin(settings, trained_on, stored.get("listing_sha256") or "")


def together(origins: list[Origin | None]) -> Origin | None:
    """The `Origin` of weights that are used together, with the settings of the first; None if that of one is
    not known."""
    if None in origins:
        return None
    return origins[0]._replace(trained_on=sorted({name for one in origins for name in one.trained_on}))


def names() -> list[str]:
    """The names of the weights that come with the library."""
    return sorted(path.stem for path in SHELF.glob("*.json"))


def look_up(name: str) -> tuple[WeightsFile, Origin, dict]:
    """The weights that come with the library under a name.

    Returns:
        (file, origin, card): the file, the `Origin` of the weights, and the card, a dict.

    Raises:
        UserError: there is no such name, or the file is not the one that the card describes.
    """
    if name not in names():
        raise UserError(
            f"There are no pretrained weights {name!r}; there are: {', '.join(names()) or 'none'}."
        )
    path = SHELF / f"{name}.pdparams"
    card = read_report(SHELF / f"{name}.json", sha256=str)
    file = WeightsFile(str(path), read_bytes(path) if path.is_file() else b"")
    if digest_of(file.data) != card["sha256"]:
        raise UserError(f"{path} is missing or is not the file that its card describes: get it anew.")
    return file, origin_of(settings_from_dict(card["settings"]), card), card


def find_weights(path: str, or_name: bool = False) -> tuple[WeightsFile, Origin | None]:
    """The weights that a path means, read at once.

    Args:
        path: a run folder or a checkpoint folder (their best weights), or a file of weights.
        or_name: also take one of `names`.
    Returns:
        (file, origin): the `Origin` of the run it belongs to, None for a file on its own.
    Raises:
        UserError: there are none.
    """
    if or_name and path in names():
        return look_up(path)[:2]
    folder, name = os.path.split(path)
    if os.path.isdir(path):
        found = checkpoint.read_best(path)
    elif not os.path.isfile(path):
        shipped = f", and no pretrained weights of that name; there are: {', '.join(names()) or 'none'}"
        raise UserError(f"There is no file or folder {path}{shipped if or_name else ''}.")
    elif checkpoint.belongs(name) and os.path.isfile(os.path.join(folder, checkpoint.STATES)):
        found = checkpoint.read_set(folder, name)
    else:
        return WeightsFile(path, read_bytes(path)), None
    return _of_set(found)[0]


def find_kept(folder: str) -> list[tuple[WeightsFile, Origin]]:
    """The weights of the best validations that a run kept, the best first, as `find_weights` returns one."""
    return _of_set(checkpoint.read_best(folder, kept=True))


def _of_set(found):
    origin = origin_of(found.settings, found.states)
    return [(WeightsFile(os.path.join(found.path, name), data), origin) for name, data in found.files.items()]


def classes_trained_on(origin: Origin | None, settings: Settings, part: str) -> int | None:
    """How many classes of a part of the split weights were trained on, or those that they started from; None
    if it is not known.

    Args:
        origin: the `Origin` of the weights; None if it is not known.
        settings: `Settings` that say which split is meant.
        part: "val", "test", or of a folder "all".
    """
    if settings.of_folder:
        return _classes_of_folder_trained_on(origin, settings, part)

    def trains_on(**changes):
        return dataclasses.replace(settings, **changes).trains_on

    def split(rule):
        return split_classes(class_names(), rule)

    known = {UNKNOWN} if origin is None else set(origin.trained_on)
    rules = {trains_on(dataset="omniglot", split_rule=rule): rule for rule in OMNIGLOT_RULES}
    seen = {name for one in known & set(rules) for name in split(rules[one])["train"]}
    held_back = split(settings.split_rule)[part] if settings.dataset == "omniglot" else ()
    # Drawn characters are none of Omniglot's, and always divided in the same way; sinusoids likewise.
    sure = known <= {*rules, trains_on(dataset="synthetic"), trains_on(dataset="sinusoid")}
    return len(seen.intersection(held_back)) or (0 if sure else None)


def _classes_of_folder_trained_on(origin, settings, part):
    """As `classes_trained_on`: it is known of weights that saw the images of this folder alone, drawn
    characters aside. Classes of the same name in another folder may be others, and those of another name the
    same."""
    if origin is None or set(origin.trained_on) - {"synthetic"} != {origin.settings.trains_on}:
        return None
    listing = list_folder(settings.folder)
    if origin.listing_sha256 != listing.digest():
        return None
    seen = listing.divided(origin.settings.split_seed)[0]["train"]
    own = listing.divided(settings.split_seed)[0]
    tested = {name for of, names in own.items() if part in (of, "all") for name in names}
    return len(tested.intersection(seen))


def start_weights(settings: Settings) -> tuple[WeightsFile | None, Origin | None]:
    """The weights that a run with these settings starts from.

    Returns:
        (file, origin): as of `find_weights`; both None for fresh weights.

    Raises:
        UserError: there is no such file, the weights were trained on classes that the run holds back, or
            their network is of another architecture.
    """
    if not settings.start_from:
        return None, None
    with fresh_weights_are_a_way_out():
        weights, origin = find_weights(settings.start_from, or_name=True)
        # The shapes may be the same. Images of another size, and another width, are seen by them.
        for name in ("network", "hidden", "batch_norm", "architecture") if origin else ():
            of_weights = getattr(origin.settings, name)
            if of_weights != getattr(settings, name):
                raise UserError(
                    f"{flag('start_from')} is {settings.start_from!r}, but these weights are of a network of "
                    f"{flag(name)} {of_weights}: train that."
                )
        seen = sum(classes_trained_on(origin, settings, part) or 0 for part in ("val", "test"))
        if seen:
            split = f"seed {settings.split_seed}" if settings.of_folder else settings.split_rule
            raise UserError(
                f"{flag('start_from')} is {settings.start_from!r}, but these weights were trained on {seen} "
                f"classes that the split {split} holds back for validation and test: start from weights of "
                "that split."
            )
    return weights, origin


@contextlib.contextmanager
def fresh_weights_are_a_way_out() -> Iterator[None]:
    """A refusal says how to begin without: a preset may have asked for weights, and not the user."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{str(error)[:-1]}; {flag('start_from')} none begins with fresh weights.") from error

"""What eval.py does with a user's own images: learn a task from some, and classify the others."""

from __future__ import annotations

import os
from typing import Iterator

from ..engine.assembly import choose_device, environment, settings_for
from ..engine.provenance import find_weights, look_up
from ..files import write_whole
from ..inference.classifier import Classifier, Task
from ..inference.prediction import Prediction
from ..report.tables import prediction_csv, write_json


def chosen_classifier(name: str | None, path: str | None, given: dict) -> tuple[Classifier, str, str]:
    """The classifier that a command line asks for.

    Args:
        name: of weights that come with the library; else `path` is that of others, see `find_weights`.
        given: the settings that are given, by name; the others are those of the weights' run.

    Returns:
        (classifier, weights, device): the path of its weights' file, and Paddle's name of the device.

    Raises:
        UserError: as `Classifier`.
    """
    weights, origin = look_up(name)[:2] if name else find_weights(path)
    settings = settings_for(origin and origin.settings, given)
    device = choose_device(settings)
    return Classifier(weights, settings), weights.path, device


def run(asked: dict, given: dict) -> None:
    """Classify what is asked for, with the settings that are given, and print and write the answers."""
    name = asked["pretrained"]
    classifier, weights, device = chosen_classifier(name, asked["weights"], given)
    task = classifier.adapt(asked["support"], ink=asked["ink"] or "auto")
    prediction = task.predict(asked["query"], asked["statistics"])
    print(prediction)
    print("\n" + "\n".join(_said(task, prediction)))
    target = asked["predictions"]
    if not target:
        return
    if target.endswith(".csv"):
        write_whole(target, prediction_csv(prediction.rows()))
    else:
        report = {
            "predictions": prediction.rows(),
            "accuracy": prediction.accuracy,
            "shots": dict(zip(map(str, task.classes), task.shots)),
            "statistics": prediction.statistics,
            "inverted": {"support": task.inverted, "query": prediction.inverted},
            "weights": name or os.path.abspath(weights),
            "environment": environment(device),
            "settings": classifier.settings.as_dict(),
        }
        write_json(target, report)
    print(f"Answers: {target}")


def _said(task: Task, prediction: Prediction) -> Iterator[str]:
    """Lines on what the answers rest on."""
    whose = "training images" if prediction.statistics == "population" else f"the {prediction.statistics} set"
    shots = sorted({min(task.shots), max(task.shots)})
    yield (
        f"{len(task.classes)} classes with {' to '.join(map(str, shots))} support images each, "
        f"{len(prediction)} query images, batch statistics of {whose}."
    )
    if task.inverted or prediction.inverted:
        yield (
            f"Light ink on dark paper was made dark on light: {task.inverted} support and "
            f"{prediction.inverted} query images."
        )
    if prediction.accuracy is not None:
        yield f"Accuracy: {prediction.accuracy:.1%} of {len(prediction)} query images."

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


def run(asked: dict, given: dict) -> None:
    """Classify what is asked for, with the settings that are given, and print and write the answers."""
    name = asked["pretrained"]
    weights, origin = look_up(name)[:2] if name else find_weights(asked["weights"])
    settings = settings_for(origin and origin.settings, given)
    device = choose_device(settings)
    classifier = Classifier(weights, settings)
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
            "settings": settings.as_dict(),
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

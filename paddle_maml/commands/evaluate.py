"""What eval.py does once its options are known: score weights on episodes, or analyse them."""

from __future__ import annotations

import os
import sys

from ..data.images import ImageSet
from ..engine.analysis import analyse, write_analysis
from ..engine.assembly import (
    choose_device,
    describe,
    environment,
    evaluation_episodes,
    load_images,
    make_learner,
    own_network_may_fail,
    require_classes,
    settings_for,
)
from ..engine.evaluation import choose_statistics, evaluate
from ..engine.provenance import classes_trained_on, find_weights, look_up
from ..engine.regression import analyse_sinusoids, regression_table, write_regression
from ..engine.settings import WITH_STEPS
from ..engine.timing import time_tasks
from ..engine.weights import load_weights
from ..errors import UserError
from ..report.tables import analysis_table, evaluation_table, times_line, write_json


def run(asked: dict, given: dict) -> None:
    """Evaluate what is asked for, with the settings that are given, and print and write the result."""
    name = asked["pretrained"]
    weights, origin = look_up(name)[:2] if name else find_weights(asked["weights"])
    settings = settings_for(origin and origin.settings, given)
    with own_network_may_fail(settings):
        _run(asked, name, weights, origin, settings)


def _run(asked, name, weights, origin, settings):
    part = asked["part"]
    device = choose_device(settings)
    if part == "all" and not settings.of_folder:
        raise UserError(f"--split is all, but the dataset is {settings.dataset}, no folder: name a part.")
    parts, rule = load_images(settings, announce=print)
    images = ImageSet.joined(parts.values()) if part == "all" else parts[part]
    require_classes(settings, {part: images}, "add classes, or take those of all parts with --split all")
    learner = make_learner(settings, images)
    load_weights(learner, weights)
    if asked["statistics"]:
        choose_statistics(learner, asked["statistics"])
    seen = classes_trained_on(origin, settings, part) if part != "train" else 0
    if seen:
        print(
            f"Note: these weights were trained on {seen} of the classes of this split; their accuracy on it "
            "says little."
        )
    elif seen is None:
        print(
            "Note: it is not known whether these weights were trained on classes of this split, as of any "
            "file of weights on its own, and of another folder; if they were, their accuracy on it says "
            "little."
        )
    if origin is None and settings.network == "conv4":
        print(
            "Note: nor does such a file say of which architecture and for which image size it is; they are "
            f"taken to be {settings.architecture} and {settings.image_size}, and if that is wrong, so are "
            "the figures."
        )
    regression = settings.dataset == "sinusoid"
    if asked["analyse"] and settings.learner not in WITH_STEPS:
        raise UserError(
            f"--analyse studies inner steps, but the learner is {settings.learner}, which has none: leave it "
            "out."
        )
    if regression and asked["statistics"]:
        raise UserError("--statistics says nothing to a regression: leave it out.")
    if asked["analyse"]:
        study, table = (analyse_sinusoids, regression_table) if regression else (analyse, analysis_table)
        analysis, pictures = study(learner, settings, images, parts["val"], announce=_announce)
        print(table(analysis))
        about = {"dataset": images.name, "split_rule": rule, "split": part}
        report = {"analysis": {**about, **analysis}}
    else:
        episodes = evaluation_episodes(settings, images)
        result = evaluate(learner, episodes, settings.test_episodes, settings.steps_at_test)
        report = {"evaluation": describe(result, settings, images, rule, part)}
        print(evaluation_table(report["evaluation"]))
        report["parameters"] = sum(p.size for p in learner.parameters() if not p.stop_gradient)
        if asked["time"]:
            report["times"] = time_tasks(learner, episodes, settings.steps_at_test)
            print(times_line(report["times"]))
    report.update(
        weights=name or os.path.abspath(weights.path),
        classes_trained_on=seen,
        environment=environment(device),
        settings=settings.as_dict(),
    )
    if asked["analyse"]:
        (write_regression if regression else write_analysis)(asked["analyse"], report, pictures)
        print(f"Pictures and JSON: {asked['analyse']}")
    if asked["json"]:
        write_json(asked["json"], report)


def _announce(line):
    print(line, file=sys.stderr)

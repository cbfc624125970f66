"""What eval.py does once its options are known: score weights on episodes, or analyse them."""

from __future__ import annotations

import os
import sys

from ..data.images import ImageSet
from ..engine.analysis import analyse, write_analysis
from ..engine.assembly import (
    NETWORK,
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
from ..engine.ensemble import as_tested
from ..engine.evaluation import evaluate
from ..engine.provenance import classes_trained_on, find_kept, find_weights, look_up, together
from ..engine.regression import analyse_sinusoids, regression_table, write_regression
from ..engine.settings import WITH_STEPS
from ..engine.timing import time_tasks
from ..engine.weights import load_weights, parameters_of
from ..errors import UserError
from ..files import digest_of
from ..report.tables import analysis_table, evaluation_table, times_line, write_json

# What the members of an ensemble must have in common, so that one test is for all of them.
ALIKE = (
    "dataset",
    "split_rule",
    "split_seed",
    "preprocessing",
    "k_shot",
    *NETWORK,
    *"loss head adapted inner_lr learn_inner_lr inner_optimizer test_inner_batch steps_at_test".split(),
)


def run(asked: dict, given: dict) -> None:
    """Evaluate what is asked for, with the settings that are given, and print and write the result."""
    name = asked["pretrained"]
    found = [look_up(name)[:2]] if name else _found(asked)
    settings, *others = [settings_for(origin and origin.settings, given) for _, origin in found]
    for other in others:
        for option in ALIKE:
            mine, others_own = getattr(settings, option), getattr(other, option)
            if mine != others_own:
                raise UserError(
                    f"An ensemble needs weights of one kind, but {option} is {mine} of the first ones and "
                    f"{others_own} of others: leave those out."
                )
    with own_network_may_fail(settings):
        _run(asked, name, found, settings)


def _found(asked):
    """All weights that are meant, and their origins."""
    for path in asked["weights"] if asked["ensemble"] else ():
        if not os.path.isdir(path):
            raise UserError(f"--ensemble is for the folder of a run, but {path} is none: leave it out.")
    find = find_kept if asked["ensemble"] else lambda path: [find_weights(path)]
    found = [one for path in asked["weights"] for one in find(path)]
    for number, (file, _) in enumerate(found):
        if file.data in [earlier.data for earlier, _ in found[:number]]:
            raise UserError(f"--weights has the weights of {file} twice: an ensemble needs different ones.")
    return found


def _run(asked, name, found, settings):
    part, origins = asked["part"], [origin for _, origin in found]
    device = choose_device(settings)
    if part == "all" and not settings.of_folder:
        raise UserError(f"--split is all, but the dataset is {settings.dataset}, no folder: name a part.")
    parts, rule = load_images(settings, announce=print)
    images = ImageSet.joined(parts.values()) if part == "all" else parts[part]
    require_classes(settings, {part: images}, "add classes, or take those of all parts with --split all")
    learners = []
    for weights, _ in found:
        learners.append(make_learner(settings, images))
        load_weights(learners[-1], weights)
    learner = learners[0]
    seen = classes_trained_on(together(origins), settings, part) if part != "train" else 0
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
    if None in origins and settings.network == "conv4":
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
        with as_tested(settings, learners) as tested:
            how = {"steps": settings.steps_at_test, "every_step": settings.every_step_at_test}
            result = evaluate(tested, episodes, settings.test_episodes, **how)
        if len(found) > 1:
            result["ensemble"] = [
                {"file": os.path.basename(path), "sha256": digest_of(data)} for (path, data), _ in found
            ]
        report = {"evaluation": describe(result, settings, images, rule, part)}
        print(evaluation_table(report["evaluation"]))
        report["parameters"] = sum(map(parameters_of, learners))
        if asked["time"]:
            report["times"] = time_tasks(learner, episodes, settings.steps_at_test)
            print(times_line(report["times"]))
    report.update(
        weights=name or (asked["weights"][0] if len(found) == 1 else asked["weights"]),
        sha256=digest_of(found[0][0].data) if len(found) == 1 else None,
        classes_trained_on=seen,
        environment=environment(device),
        command=asked["command"],
        settings=settings.portable().as_dict(),
    )
    if asked["analyse"]:
        (write_regression if regression else write_analysis)(asked["analyse"], report, pictures)
        print(f"Pictures and JSON: {asked['analyse']}")
    if asked["json"]:
        write_json(asked["json"], report)


def _announce(line):
    print(line, file=sys.stderr)

"""Runs of the learner that trains without episodes: what they keep, and that they can be resumed."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import TINY, call, start

from paddle_maml.commands import cli
from paddle_maml.engine import assembly, checkpoint
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError
from paddle_maml.report.log import METRICS, read_metrics

RUN = {name: value for name, value in TINY.items() if name not in ("k_query", "inner_steps")}
RUN.update(learner="fine-tuning", adapted="head", test_inner_steps=4, batch_size=8, iterations=6, val_every=3)
HEAD = {"training_weight", "training_bias"}


def options(**changes):
    pairs = {**RUN, **changes}.items()
    return [part for name, value in pairs for part in ("--" + name.replace("_", "-"), str(value))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("fine") / "run")
    assert cli.main_train([*options(output=folder), "--rotations", "--reflections"]) == 0
    return folder


def test_the_head_of_training_is_for_going_on_alone(run):
    path = checkpoint.newest_checkpoint(run)
    newest, best = (read_file(os.path.join(path, name)) for name in (checkpoint.WEIGHTS, checkpoint.BEST))
    assert set(newest) - set(best) == HEAD
    classes = len(assembly.load_images(settings_from_preset(**RUN))[0]["train"].classes)
    assert newest["training_weight"].shape[1] == 8 * classes  # rotated and mirrored ones are further classes
    report = json.loads(Path(run, "report.json").read_text())
    assert report["test"]["learner"] == "fine-tuning" and "note" not in report["test"]
    assert len(report["test"]["accuracy_per_step"]) == 1 and report["test"]["inner_steps"] == 4


def test_its_weights_answer_tasks_of_any_number_of_classes(run, tmp_path, capsys):
    shown = {}
    path = str(tmp_path / "result.json")
    for name, more in {
        "as trained": [],
        "other task": ["--n-way", "3", "--k-shot", "2", "--head", "cosine", "--inner-steps", "0"],
        "all": ["--adapted", "all"],
        "query": ["--statistics", "query", "--time"],
    }.items():
        command = ["--weights", run, "--episodes", "4", "--k-query", "2", "--json", path, *more]
        assert cli.main_eval(command) == 0, name
        shown[name] = json.loads(Path(path).read_text())
    tested = {name: report["evaluation"] for name, report in shown.items()}
    assert (tested["other task"]["n_way"], tested["other task"]["head"]) == (3, "cosine")
    assert tested["all"]["adapted"] == "all" and "note" not in tested["all"]
    assert "note" in tested["query"] and tested["query"]["statistics"] == "query"
    assert shown["query"]["times"]["adapt_s"] > 0 and shown["query"]["times"]["query_images"] == 10
    assert "ms to adapt to a task" in capsys.readouterr().out
    # Four blocks of width 4 from one channel: weights, biases, scales and shifts.
    assert shown["all"]["parameters"] == 36 + 3 * 144 + 4 * 3 * 4


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--learner", "maml"], "--learner is maml, but these weights were trained with fine-tuning"),
        (["--statistics", "support"], "must be one of population, query for these weights"),
        (["--analyse", "x"], "--analyse studies inner steps, but the learner is fine-tuning"),
        (["--analyse", "x", "--time"], "--time says nothing to --analyse"),
        (["--inner-steps", "0"], "test_inner_steps is 0, but a new linear head knows nothing"),
    ],
)
def test_what_means_nothing_is_refused(run, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert cli.main_eval(["--weights", run, "--episodes", "4", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"k_query": 3}, "k_query is 3, but fine-tuning trains without episodes"),
        ({"inner_steps": 3}, "inner_steps is 3, but the learner is fine-tuning"),
        ({"order": 2}, "order is 2, but the learner is fine-tuning"),
        ({"train_n_way": 9}, "train_n_way is 9, but the learner is fine-tuning"),
        ({"learner": "maml", "head": "cosine"}, "head is cosine, but the learner is maml"),
        ({"learner": "maml", "batch_size": 8}, "batch_size is 8, but the learner is maml"),
        ({"dataset": "sinusoid", "network": "mlp"}, "sinusoids have no classes"),
    ],
)
def test_settings_without_effect_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        settings_from_preset(**{"learner": "fine-tuning", **changes})


def test_none_is_not_given():
    """As in the notebook for AI Studio, which has a folder of images or none."""
    assert settings_from_preset(dataset="synthetic", data_dir=None).data_dir is None
    with pytest.raises(UserError, match="data_dir is images, but the characters are drawn and not read"):
        settings_from_preset(dataset="synthetic", data_dir="images")


def end_of(folder):
    path = checkpoint.newest_checkpoint(folder)
    arrays = {}
    for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER):
        arrays.update({(name, key): value for key, value in read_file(os.path.join(path, name)).items()})
    rows = [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_metrics(os.path.join(folder, METRICS))
    ]
    return arrays, rows


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_two_processes_resume_to_the_same_bits(tmp_path, head):
    changing = {"head": head, "processes": 2, "iterations": 40, "meta_lr_schedule": "cosine", "val_every": 7}
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    status, _, errors = call("train.py", options(output=whole, **changing))
    assert status == 0, errors
    process = start("train.py", options(output=killed, **changing))
    while checkpoint.newest_checkpoint(killed) in (None, os.path.join(killed, "checkpoint-0")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    time.sleep(2)  # the members of the group end too
    assert 0 < int(checkpoint.newest_checkpoint(killed).rsplit("-", 1)[1]) < 40
    status, _, errors = call("train.py", [*options(output=killed, **changing), "--resume"])
    assert status == 0, errors
    (arrays, rows), (expected_arrays, expected_rows) = end_of(killed), end_of(whole)
    assert arrays.keys() == expected_arrays.keys() and rows == expected_rows
    assert (checkpoint.WEIGHTS, "training_weight") in arrays
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=str(name))

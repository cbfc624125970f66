"""Runs of the LSTM: resumed with two processes, evaluated, and refused where a setting means nothing."""

import json
import os

import numpy as np
import pytest
from tiny_run import TINY, call

import paddle_maml
from paddle_maml.commands.cli import main_eval, main_train
from paddle_maml.data.synthetic import draw_synthetic
from paddle_maml.engine import checkpoint
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError


def options(**changes):
    """A run of a few seconds as command-line options."""
    run = {**TINY, "learner": "lstm", "lstm_hidden": 8, "iterations": 6, "val_every": 3, **changes}
    del run["inner_steps"]
    return [part for name, value in run.items() for part in ("--" + name.replace("_", "-"), str(value))]


def end_of(folder):
    path = checkpoint.newest_checkpoint(str(folder))
    arrays = {}
    for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER):
        arrays.update({(name, key): value for key, value in read_file(os.path.join(path, name)).items()})
    return arrays


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=str(name))


@pytest.mark.slow
def test_it_is_trained_resumed_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_train(options(output="whole")) == 0
    assert main_train(options(output="parts", iterations=3)) == 0
    assert main_train(["--resume", "--output", "parts", "--iterations", "6"]) == 0
    assert_same(end_of("parts"), end_of("whole"))
    assert main_eval(["--weights", "whole", "--episodes", "6", "--json", "result.json"]) == 0
    evaluated, tested = (
        json.loads((tmp_path / path).read_text()) for path in ("result.json", "whole/report.json")
    )
    assert evaluated["evaluation"]["accuracy"] == tested["test"]["accuracy"]
    assert "note" not in tested["test"] and tested["test"]["learner"] == "lstm"
    classifier, images = paddle_maml.load("whole"), list(draw_synthetic(alphabets=1).images[:6, 0, 0])
    task = classifier.adapt(images[:4], list("abcd"))
    together, alone = task.predict(images).probabilities, task.predict(images[:1]).probabilities
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4)
    assert classifier.statistics == ("population", "query") and together.shape == (6, 4)
    with pytest.raises(UserError, match="has 6 classes, but these weights tell 2 to 5 apart"):
        classifier.adapt(images, list("abcdef"))


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path):
    """And one process computes the same: 16 tasks are two groups, whose batch norm is their own."""
    runs = {name: str(tmp_path / name) for name in ("whole", "parts", "alone")}
    for name, changes in (
        ("whole", {"processes": 2, "meta_batch": 16}),
        ("parts", {"processes": 2, "meta_batch": 16, "iterations": 3}),
        ("alone", {"meta_batch": 16}),
    ):
        status, _, errors = call("train.py", options(output=runs[name], **changes))
        assert status == 0, errors
    more = ["--resume", "--output", runs["parts"], "--iterations", "6"]
    status, _, errors = call("train.py", more)
    assert status == 0, errors
    whole = end_of(runs["whole"])
    assert_same(end_of(runs["parts"]), whole)
    for name, array in end_of(runs["alone"]).items():
        if name[0] == checkpoint.WEIGHTS:
            np.testing.assert_allclose(array, whole[name], rtol=2e-3, atol=2e-5, err_msg=str(name))


@pytest.mark.parametrize(
    "learner, settings, message",
    [
        ("lstm", {"order": 2}, "order is 2, but the learner is lstm: leave it out"),
        ("lstm", {"inner_steps": 3}, "inner_steps is 3, but the learner is lstm: leave it out"),
        ("lstm", {"train_n_way": 20}, "train_n_way is 20, but the learner is lstm: leave it out"),
        ("maml", {"lstm_hidden": 64}, "lstm_hidden is 64, but the learner is maml: leave it out"),
        ("lstm", {"dataset": "sinusoid", "network": "mlp"}, "sinusoids have no classes"),
    ],
)
def test_settings_without_meaning_are_refused(learner, settings, message):
    with pytest.raises(UserError, match=message):
        settings_from_preset(learner=learner, **settings)

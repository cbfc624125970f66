"""A network of the user's own through the commands: trained, resumed, evaluated and analysed."""

import json

import numpy as np
import pytest

from paddle_maml.commands.cli import main_eval, main_train
from paddle_maml.engine.plain_data import read_file

MODULE = """
import paddle
from paddle import nn
from paddle_maml import twice_differentiable

def make(shape, n_outputs):
    layers = nn.Conv2D(shape[0], 4, 3, stride=2), nn.BatchNorm2D(4), nn.GELU(), nn.MaxPool2D(4), nn.Flatten()
    return twice_differentiable(nn.Sequential(*layers, nn.Linear(36, n_outputs)))

def stock(shape, n_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.LayerNorm(8), nn.Linear(8, n_outputs))

def no_layer(shape, n_outputs):
    return "a text"

def no_parameters(shape, n_outputs):
    return nn.ReLU()

def dropping(shape, n_outputs):
    layers = nn.Flatten(), nn.Linear(784, 8), nn.Dropout(0.5), nn.Linear(8, n_outputs)
    return twice_differentiable(nn.Sequential(*layers))

def no_arguments():
    return nn.ReLU()

def wrong_outputs(shape, n_outputs):
    return nn.Sequential(nn.Conv2D(1, 4, 3))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a name of its own in the current folder."""
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


SMALL = (
    "--preset quickstart --iterations 4 --val-every 2 --val-episodes 4 --test-episodes 4 --k-query 2 "
    "--test-k-query 2 --meta-batch 2 --inner-steps 2 --meta-lr-schedule constant --checkpoint-every 1 "
    "--device cpu --processes 1"
).split()


def options(network, output, **changes):
    more = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    return [*SMALL, "--network", network, "--output", output, *more]


def test_it_is_trained_resumed_and_evaluated(module, tmp_path, capsys):
    network = f"{module}:make"
    assert main_train(options(network, output="whole")) == 0
    assert main_train(options(network, output="parts", iterations=2)) == 0
    assert main_train(["--resume", "--output", "parts", "--iterations", "4", "--network", network]) == 0
    whole, parts = (
        read_file(tmp_path / run / "checkpoint-4" / "model.pdparams") for run in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and "1._mean" in whole
    for name, array in whole.items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, parts[name])
    assert (
        main_eval(["--weights", "whole", "--network", network, "--json", "result.json", "--episodes", "4"])
        == 0
    )
    evaluated, tested = (
        json.loads((tmp_path / path).read_text()) for path in ("result.json", "whole/report.json")
    )
    assert evaluated["evaluation"]["accuracy"] == tested["test"]["accuracy"]
    assert (
        main_eval(["--weights", "whole", "--network", network, "--analyse", "analysis", "--episodes", "4"])
        == 0
    )


def test_dropout_draws_the_same_in_a_resumed_run_and_is_off_in_tests(module, tmp_path):
    network = f"{module}:dropping"
    assert main_train(options(network, output="whole")) == 0
    assert main_train([*options(network, output="parts"), "--iterations", "2"]) == 0
    assert main_train(["--resume", "--output", "parts", "--iterations", "4", "--network", network]) == 0
    newest = "checkpoint-4/model.pdparams"
    whole, parts = (read_file(str(tmp_path / run / newest)) for run in ("whole", "parts"))
    for name, array in whole.items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(array, parts[name])
    tests = [json.loads((tmp_path / run / "report.json").read_text())["test"] for run in ("whole", "parts")]
    assert tests[0] == tests[1] and "note" not in tests[0]


def test_what_a_run_says_is_not_imported(module, capsys, monkeypatch, tmp_path):
    assert main_train(options(f"{module}:make", output="run", iterations=1)) == 0
    (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported')")
    for command in (
        lambda: main_eval(["--weights", "run"]),
        lambda: main_train(["--resume", "--output", "run"]),
    ):
        assert command() == 2
        assert f"if it is yours, name it with --network {module}:make" in capsys.readouterr().err


@pytest.mark.parametrize(
    "network, message",
    [
        ("nowhere:make", "which cannot be had (ModuleNotFoundError: No module named 'nowhere')"),
        ("{}:no_arguments", "which cannot be had (TypeError: no_arguments() takes 0 positional arguments"),
        ("{}:nothing", "has no attribute 'nothing'"),
        ("{}:no_layer", "which returns a str: return a paddle.nn.Layer"),
        ("{}:no_parameters", "ReLU has no parameters that could be adapted"),
        ("{}:wrong_outputs", "cross-entropy needs outputs (T, N, classes)"),
        ("{}:stock", "the second derivatives of 2 (LayerNorm) are missing in this Paddle"),
        ("a text", "must be conv4, mlp, or MODULE:FUNCTION"),
    ],
)
def test_what_is_no_network_is_refused_in_a_sentence(module, capsys, network, message, tmp_path):
    assert main_train(options(network.format(module), output="run")) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""Sinusoids and perceptrons through the commands: train, resume, evaluate, analyse."""

import json

import numpy as np
import pytest

from paddle_maml.commands.cli import main_eval, main_train
from paddle_maml.data.sinusoid import Sinusoids
from paddle_maml.engine import assembly
from paddle_maml.engine.results import keep, table
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.report.log import METRICS, read_metrics
from paddle_maml.report.pictures import draw_functions

SINUSOID = (
    "--preset sinusoid --hidden 12,12 --inner-lr 0.02 --meta-lr 0.01 --test-inner-steps 3 --val-episodes 8 "
    "--test-episodes 12 --val-every 20 --log-every 10 --checkpoint-every 20 --test-k-query 20 --device cpu"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 60 meta-iterations that was stopped after 40 and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "sinusoid"
    arguments = [*SINUSOID, "--output", str(folder)]
    assert main_train([*arguments, "--iterations", "40"]) == 0
    assert main_train([*arguments, "--iterations", "60", "--resume"]) == 0
    return folder


def test_training_lowers_the_error_and_a_resumed_run_is_the_whole_one(run, tmp_path):
    assert main_train([*SINUSOID, "--output", str(tmp_path / "whole"), "--iterations", "60"]) == 0
    reports = [json.loads((folder / "report.json").read_text()) for folder in (run, tmp_path / "whole")]
    assert reports[0]["test"] == reports[1]["test"]
    test = reports[0]["test"]
    assert test["score_name"] == "mean square error" and test["score"] == test["score_per_step"][-1]
    assert test["score_per_step"][0] > test["score"] > 0 and "accuracy" not in test and "note" not in test
    rows = read_metrics(run / METRICS)
    assert [row["accuracy"] for row in rows] == [""] * 6  # an error is none
    assert float(rows[-1]["val_loss"]) < float(rows[1]["val_loss"])
    assert reports[0]["validation"]["score"] == pytest.approx(
        min(float(r["val_loss"]) for r in rows if r["val_loss"]), rel=1e-5
    )


def test_evaluation_prints_the_error_after_each_step(run, capsys, tmp_path):
    arguments = [
        "--weights",
        str(run),
        "--episodes",
        "10",
        "--k-shot",
        "5",
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert main_eval(arguments) == 0
    printed = capsys.readouterr().out
    assert "sinusoid, test split, 5 points, 20 query points, mean square error: " in printed
    assert "it is not known" not in printed
    evaluation = json.loads((tmp_path / "r.json").read_text())["evaluation"]
    assert len(evaluation["score_per_step"]) == 4 and evaluation["k_shot"] == 5


@pytest.mark.slow
def test_analysis_compares_points_steps_and_a_network_of_all_tasks(run, capsys, tmp_path):
    assert main_eval(["--weights", str(run), "--episodes", "6", "--analyse", str(tmp_path / "a")]) == 0
    rows = json.loads((tmp_path / "a" / "analysis.json").read_text())["analysis"]["mean_square_errors"]
    assert [(row["network"], row["points"]) for row in rows] == [
        (name, points) for name in ("MAML", "all tasks together") for points in (5, 10, 20)
    ]
    assert all(len(row["error_per_step"]) == 11 for row in rows)
    assert (tmp_path / "a" / "sinusoid.png").stat().st_size > 1000
    assert "all tasks together" in capsys.readouterr().out


def test_a_run_can_be_kept_and_tabulated(run, tmp_path):
    keep(run, tmp_path / "kept")
    assert "mean square error" in table([tmp_path / "kept"])


def test_parts_share_no_task():
    tasks = {part: Sinusoids(part).episodes(5, 5, seed=3).draw(0) for part in ("train", "val", "test")}
    assert len(set(tasks.values())) == 3


def test_functions_are_drawn_where_they_are():
    x = np.linspace(-5, 5, 50)
    image = draw_functions([("a line", {"y": (x, x)}, ([0.0], [0.0]))])
    pixels = np.asarray(image).reshape(-1, 3)
    assert (pixels == (31, 97, 166)).all(axis=1).sum() > 100  # the line's colour
    blank = draw_functions([("a line", {"y": (x, x * 0 - 5)}, ([0.0], [5.0]))])
    assert (np.asarray(image) != np.asarray(blank)).any()


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--preset", "omniglot-5way-1shot", "--dataset", "sinusoid"],
            "network is 'conv4', but sinusoids are no images",
        ),
        (["--hidden", "12"], "hidden is 12, but the network is not mlp"),
        (["--network", "mlp", "--hidden", "12,,3"], "--hidden is '12,,3', but must be whole numbers from 1"),
        (["--network", "mlp", "--width", "3"], "width is 3, but the network is not conv4"),
        (["--preset", "sinusoid", "--rotations"], "rotations is True, but sinusoids are no images"),
        (["--order", "1", "--hessian", "difference"], "hessian is difference, but order 1 has no Hessian"),
    ],
)
def test_settings_that_do_nothing_are_refused(options, message, capsys, tmp_path):
    assert main_train([*options, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_perceptron_on_drawn_characters(capsys, tmp_path):
    options = (
        "--preset quickstart --network mlp --hidden 16,8 --iterations 6 --val-every 3 --k-query 2 "
        "--test-episodes 4 --val-episodes 4 --test-k-query 3 --learn-inner-lr --device cpu --processes 1"
    )
    assert main_train([*options.split(), "--output", str(tmp_path / "run")]) == 0
    assert main_eval(["--weights", str(tmp_path / "run"), "--episodes", "4"]) == 0
    assert main_eval(["--weights", str(tmp_path / "run"), "--episodes", "4", "--hidden", "16,16"]) == 2
    assert "these weights were trained with 16,8" in capsys.readouterr().err
    start = [
        "--preset",
        "quickstart",
        "--start-from",
        str(tmp_path / "run"),
        "--output",
        str(tmp_path / "other"),
    ]
    assert main_train(start) == 2
    assert "these weights are of a network of --network mlp" in capsys.readouterr().err


def test_distorted_copies_that_a_preset_asks_for_are_none_of_sinusoids():
    settings = settings_from_preset("anil-5way-1shot", dataset="sinusoid", network="mlp")
    assert settings.distortions == 8
    parts, _ = assembly.load_training_images(settings)
    assert all(isinstance(part, Sinusoids) for part in parts.values()) and len(parts) == 3

import csv
import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from tiny_run import TINY

from paddle_maml import files
from paddle_maml.engine import assembly, checkpoint, provenance, run_folder, training
from paddle_maml.engine.background import Ahead
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.presets import PRESETS
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.engine.weights import load_weights
from paddle_maml.errors import UserError
from paddle_maml.learners.maml import MetaLearner
from paddle_maml.report.log import COLUMNS, Metrics, Progress, read_metrics

pytestmark = pytest.mark.usefixtures("drawn_once")


def tiny(folder, **changes):
    return settings_from_preset(**{**TINY, "output": str(folder), **changes})


def final_weights(folder):
    path = checkpoint.newest_checkpoint(str(folder))
    return {
        name: {key: np.asarray(value) for key, value in read_file(os.path.join(path, name)).items()}
        for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER)
    }


def assert_same_end(one, other):
    one, other = final_weights(one), final_weights(other)
    for file in one:
        assert one[file].keys() == other[file].keys()
        for name in one[file]:
            np.testing.assert_array_equal(one[file][name], other[file][name])


def rows(folder):
    with open(os.path.join(str(folder), "metrics.csv"), newline="") as file:
        return [
            [value for name, value in row.items() if "second" not in name] for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its end: (folder, report)."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, training.train(tiny(folder))


def test_a_run_leaves_report_metrics_and_one_checkpoint(finished):
    folder, report = finished
    assert sorted(os.listdir(folder)) == ["checkpoint-12", "curve.png", "metrics.csv", "report.json"]
    assert [row[0] for row in rows(folder)] == ["3", "5", "6", "9", "10", "12"]
    with open(folder / "report.json") as file:
        assert json.load(file) == report
    test = report["test"]
    assert (test["dataset"], test["split_rule"], test["split"], test["episodes"], test["k_query"]) == (
        "synthetic",
        "synthetic",
        "test",
        6,
        3,
    )
    assert len(test["accuracy_per_step"]) == len(test["interval_per_step"]) == 3
    assert "transductive" in test["note"]
    assert report["settings"]["n_way"] == 5 and report["seed"] == 7
    assert report["environment"]["paddle"] == paddle.__version__ and report["environment"]["device"] == "cpu"


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    training.train(tiny(tmp_path / "same"))
    assert_same_end(finished[0], tmp_path / "same")
    assert rows(finished[0]) == rows(tmp_path / "same")
    training.train(tiny(tmp_path / "other", seed=8))
    with pytest.raises(AssertionError):
        assert_same_end(finished[0], tmp_path / "other")


def test_training_learns(tmp_path):
    report = training.train(
        tiny(
            tmp_path,
            width=8,
            meta_batch=4,
            iterations=60,
            val_every=60,
            test_episodes=40,
            checkpoint_every=60,
        )
    )
    assert report["test"]["accuracy"] - report["test"]["interval"] > 0.3  # chance is 0.2
    losses = [float(row["loss"]) for row in read_metrics(str(tmp_path / "metrics.csv"))]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_the_tested_weights_are_the_best_of_validation(tmp_path, monkeypatch):
    accuracies, seen, every = iter([0.5, 0.9, 0.7, 0.0]), [], []

    def fake(learner, builder, episodes, steps, between, ranks, every_step):
        every.append(every_step)
        seen.append([parameter.numpy().copy() for parameter in learner.parameters()])
        accuracy = next(accuracies)
        return {
            "accuracy": accuracy,
            "interval": 0.1,
            "loss": 1.0,
            "accuracy_per_step": [accuracy],
            "interval_per_step": [0.1],
            "loss_per_step": [1.0],
            "episodes": episodes,
            "note": "",
        }

    monkeypatch.setattr(training, "evaluate", fake)
    report = training.train(tiny(tmp_path, iterations=6, val_every=2))
    assert len(seen) == 4  # after 2, 4 and 6, and the test
    assert every == [False, False, False, True]
    assert report["validation"]["iteration"] == 4 and report["validation"]["accuracy"] == 0.9
    for best, tested in zip(seen[1], seen[3]):
        np.testing.assert_array_equal(best, tested)
    assert any((last != tested).any() for last, tested in zip(seen[2], seen[3]))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_learning_rate_is_a_function_of_the_iteration(tmp_path, schedule):
    training.train(tiny(tmp_path, meta_lr_schedule=schedule, log_every=1, iterations=4))
    rates = [float(row["meta_lr"]) for row in read_metrics(str(tmp_path / "metrics.csv"))]
    course = {
        "constant": lambda part: 1,
        "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
        "linear": lambda part: 1 - part,
    }
    np.testing.assert_allclose(rates, [0.003 * course[schedule](m / 4) for m in range(4)], rtol=1e-5)


# ---- resume ----


def test_multi_step_weights_begin_equal_and_end_on_the_last_step():
    assert assembly.multi_step_weights(0, 10, 4) == pytest.approx([0, 0.25, 0.25, 0.25, 0.25])
    assert assembly.multi_step_weights(5, 10, 4) == pytest.approx([0, 0.125, 0.125, 0.125, 0.625])
    for iteration, period in [(10, 10), (99, 10), (0, 0), (7, 0)]:
        assert assembly.multi_step_weights(iteration, period, 4) == [0, 0, 0, 0, 1]


def test_order_and_step_weights_are_functions_of_the_iteration(tmp_path, monkeypatch):
    used = []
    meta_loss = MetaLearner.meta_loss

    def recording(learner, *batch, order, step_weights):
        used.append((order, step_weights[1]))
        return meta_loss(learner, *batch, order=order, step_weights=step_weights)

    monkeypatch.setattr(MetaLearner, "meta_loss", recording)
    training.train(tiny(tmp_path, order=2, first_order_iterations=4, multi_step_iterations=10, iterations=12))
    assert [order for order, _ in used] == [1] * 4 + [2] * 8
    assert [weight for _, weight in used] == pytest.approx([max(0, 1 - i / 10) / 2 for i in range(12)])


def test_learned_rates_are_trained_kept_and_tested_with(tmp_path):
    training.train(tiny(tmp_path, learn_inner_lr=True))
    content = read_file(os.path.join(checkpoint.newest_checkpoint(str(tmp_path)), checkpoint.WEIGHTS))
    rates = np.asarray(content["inner_rates"])
    assert rates.shape == (TINY["inner_steps"], 14)
    assert (rates != np.float32(tiny(tmp_path).inner_lr)).all()


def test_a_longer_run_continues_a_finished_one(tmp_path):
    training.train(tiny(tmp_path / "whole"))
    training.train(tiny(tmp_path / "parts", iterations=10))  # a multiple of val_every
    training.train(tiny(tmp_path / "parts", resume=True, checkpoint_every=3))
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_the_length_of_a_cosine_schedule_cannot_be_changed(tmp_path):
    training.train(tiny(tmp_path, iterations=2, meta_lr_schedule="cosine"))
    before = final_weights(tmp_path)
    with pytest.raises(
        UserError,
        match="--iterations is 4, but the meta rate of the run .* falls to 0 at 2; .* --start-from ",
    ):
        training.train(tiny(tmp_path, iterations=4, meta_lr_schedule="cosine", resume=True))
    for file, arrays in final_weights(tmp_path).items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[file][name])
    training.train(tiny(tmp_path, iterations=2, meta_lr_schedule="cosine", resume=True))


def test_a_folder_with_another_run_is_refused(finished):
    folder = finished[0]
    before = final_weights(folder)
    with pytest.raises(UserError, match="holds a run already"):
        training.train(tiny(folder))
    after = final_weights(folder)
    assert before.keys() == after.keys()
    for file in before:
        for name in before[file]:
            np.testing.assert_array_equal(before[file][name], after[file][name])


@pytest.mark.parametrize("change", [{"n_way": 4}, {"seed": 1}, {"inner_lr": 0.3}, {"width": 5}, {"order": 1}])
def test_changed_settings_are_refused(finished, change):
    with pytest.raises(UserError, match="--" + list(change)[0].replace("_", "-")):
        training.train(tiny(finished[0], resume=True, **change))


def test_fewer_iterations_than_done_are_refused(finished):
    with pytest.raises(UserError, match="iterations is 3"):
        training.train(tiny(finished[0], resume=True, iterations=3))


@pytest.mark.parametrize("folder", ["typo", "."])
def test_resume_with_nothing_to_resume_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="holds no run to continue: leave --resume out"):
        training.train(tiny(tmp_path / folder, resume=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["native_kernel", "paddle"])
def test_a_run_that_goes_on_with_something_else_says_that_its_bits_may_differ(
    tmp_path, monkeypatch, capsys, name
):
    training.train(tiny(tmp_path, iterations=1))
    training.train(tiny(tmp_path, iterations=2, resume=True))
    assert "rounding" not in capsys.readouterr().out
    environment = training.environment
    monkeypatch.setattr(training, "environment", lambda device: {**environment(device), name: "another"})
    training.train(tiny(tmp_path, iterations=3, resume=True))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Continuing")]
    assert f"({name})" in line and "but for rounding, not to the bit" in line


@pytest.mark.parametrize("moment", [1, 4, 5, 11])
def test_a_stop_request_is_continued_as_if_it_had_not_been(finished, tmp_path, monkeypatch, moment):
    """SIGINT in meta-iteration `moment`: 5 is followed by a validation, which is interrupted and caught up
    later."""
    calls, original = [], training.meta_gradient

    def interrupt(*arguments, **options):
        calls.append(1)
        if len(calls) == moment:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(training, "meta_gradient", interrupt)
    with pytest.raises(training.Interrupted, match=f"meta-iteration {moment};.*--resume"):
        training.train(tiny(tmp_path))
    assert len(calls) == moment
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    training.train(tiny(tmp_path, resume=True))
    assert_same_end(finished[0], tmp_path)
    assert rows(finished[0]) == rows(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, value):
    original, calls = training.meta_gradient, []

    def diverge(*arguments, **options):
        calls.append(1)
        loss, accuracy = original(*arguments, **options)
        return (value if len(calls) == 6 else loss), accuracy

    monkeypatch.setattr(training, "meta_gradient", diverge)
    with pytest.raises(UserError, match="meta-iteration 6.*last good checkpoint is .*checkpoint-5") as error:
        training.train(tiny(tmp_path))
    assert str(value) in str(error.value)
    monkeypatch.setattr(training, "meta_gradient", original)
    training.train(tiny(tmp_path, resume=True))


def test_a_gradient_that_is_no_number_stops_and_no_such_weights_are_saved(tmp_path, monkeypatch):
    original, calls = training.meta_gradient, []

    def poison(learner, *arguments, **options):
        calls.append(1)
        result = original(learner, *arguments, **options)
        if len(calls) == 4:
            learner.parameters()[0].grad.set_value(learner.parameters()[0].grad * float("nan"))
        return result

    monkeypatch.setattr(training, "meta_gradient", poison)
    with pytest.raises(UserError, match="meta-iteration 4, because the meta-gradient is not finite"):
        training.train(tiny(tmp_path))
    for arrays in final_weights(tmp_path).values():
        assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("trouble", ["no space", "divergence", "a mistake"])
def test_a_run_that_never_began_is_not_in_the_way_of_the_next(tmp_path, monkeypatch, trouble):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curve.png").write_text("mine")
    if trouble == "divergence":
        changes, expected = {"inner_lr": 1e30}, UserError
    elif trouble == "no space":
        monkeypatch.setattr(
            paddle, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        changes, expected = {}, OSError
    else:
        monkeypatch.setattr(training, "meta_gradient", lambda *_, **options: {}["a mistake"])
        changes, expected = {}, KeyError
    with pytest.raises(expected):
        training.train(tiny(tmp_path / "run", **changes))
    assert os.listdir(tmp_path / "run") == ["curve.png"]
    monkeypatch.undo()
    training.train(tiny(tmp_path / "run", iterations=1))


@pytest.mark.parametrize("name", ["metrics.csv", "report.json"])
def test_what_is_left_of_a_run_without_a_checkpoint_is_not_continued(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} of a run but no checkpoint"):
        training.train(tiny(tmp_path, resume=True))
    assert (tmp_path / name).read_text() == "mine" and os.listdir(tmp_path) == [name]


def test_a_run_that_cannot_be_restored_is_not_touched(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    [checkpoint_folder] = (tmp_path / "run").glob("checkpoint-*")
    (checkpoint_folder / checkpoint.OPTIMIZER).unlink()
    before = sorted(os.listdir(tmp_path / "run"))
    with pytest.raises(UserError, match="lacks model.pdopt"):
        training.train(tiny(tmp_path / "run", resume=True, iterations=20))
    assert sorted(os.listdir(tmp_path / "run")) == before and len(os.listdir(checkpoint_folder)) == 3


HEADER = ",".join(COLUMNS)
ROW = "3,0.5,0.9,0.001,,,,10,1"


@pytest.mark.parametrize(
    "text, line",
    [
        ("iteration,foo\n1,2\n", 1),
        (f"{HEADER}\n²,0.5,0.9,0.001,,,,10,1\n{ROW}\n", 2),
        (f"{HEADER}\n{ROW}\n3,abc,0.9,0.001,,,,10,1\n", 3),
        (f"{HEADER}\n{ROW}\n3,nan,0.9,0.001,,,,10,1\n", 3),
        (f"{HEADER}\n{'9' * 5000},0.5,0.9,0.001,,,,10,1\n", 2),
        (f"{HEADER}\n{ROW},7\n", 2),
        ("\0\1\2\n\xff\n\n", 1),
    ],
)
def test_a_damaged_log_is_refused(tmp_path, text, line):
    (tmp_path / "metrics.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"metrics.csv is damaged in line {line}:"):
        read_metrics(str(tmp_path / "metrics.csv"))


def test_what_was_cut_off_of_a_log_is_left_out(tmp_path):
    for end in ("4,0.5", "4,0.5,0.9\0\0\0\n", "\0\0"):
        (tmp_path / "metrics.csv").write_text(f"{HEADER}\r\n{ROW}\r\n{end}")
        assert [row["loss"] for row in read_metrics(str(tmp_path / "metrics.csv"))] == ["0.5"]


def test_a_class_with_too_few_images_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="k_shot"):
        training.train(tiny(tmp_path / "run", k_shot=18))
    with pytest.raises(UserError, match="n_way"):
        training.train(tiny(tmp_path / "run", n_way=61))
    assert not (tmp_path / "run").exists()


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    with files.lock_folder(tmp_path), pytest.raises(UserError, match="Another process is writing to"):
        training.train(tiny(tmp_path))
    assert not list(tmp_path.iterdir())
    training.train(tiny(tmp_path, iterations=1))


def test_what_a_killed_write_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(files.Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "metrics.csv", b"half")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    checkpoint.remove_leftovers(str(tmp_path))
    assert not list(tmp_path.iterdir())


# ---- metrics, progress, threads ----


def test_rows_after_the_checkpoint_and_torn_rows_are_dropped(tmp_path):
    metrics = Metrics(str(tmp_path))
    for iteration in (1, 2, 3):
        metrics.add(iteration=iteration, loss=0.5)
    metrics.close()
    path = tmp_path / "metrics.csv"
    whole = path.read_text()
    path.write_text(whole + "4,0.")
    Metrics(str(tmp_path), iteration=2).close()
    assert path.read_text() == "".join(whole.splitlines(True)[:3])


def test_visualdl_is_asked_for_by_name_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "visualdl", None)
    with pytest.raises(UserError, match="pip install visualdl"):
        training.train(tiny(tmp_path / "run", visualdl=True))
    assert not (tmp_path / "run").exists()


class Terminal:
    def __init__(self, terminal):
        self.text, self.isatty = "", lambda: terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_stays_on_one_line_of_a_terminal_and_counts_time_from_the_resume(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal, log = Terminal(True), Terminal(False)
    bars = [Progress(100, start=90, stream=terminal), Progress(100, start=90, stream=log)]
    for iteration in (91, 92, 93):
        now[0] += 6.0
        for bar in bars:
            bar.update(iteration, 0.5, 0.25, 3.0)
    assert terminal.text.count("\r") == 3 and "\n" not in terminal.text
    assert log.text.count("\n") == 1 and "\r" not in log.text
    assert "92/100  loss 0.5000  accuracy 25.00%  3.0 episodes/s  0:00:48 left" in " ".join(
        log.text.split(" ")
    )


def test_meta_batches_come_in_order_errors_arrive_and_closing_does_not_hang():
    ahead = Ahead(lambda iteration: iteration, 3, 6)
    assert [ahead.next() for _ in range(3)] == [3, 4, 5]
    ahead.close()

    def fail(iteration):
        raise UserError("no images")

    ahead = Ahead(fail, 0, 5)
    with pytest.raises(UserError, match="no images"):
        ahead.next()
    ahead.close()
    threads = threading.active_count()
    ahead = Ahead(lambda iteration: iteration, 0, 10**9)
    ahead.next()
    ahead.close()
    assert threading.active_count() == threads


def test_a_run_starts_from_given_weights(finished, tmp_path):
    folder, _ = finished
    trained = final_weights(folder)[checkpoint.BEST]
    # With a rate that no weight notices, a run ends with what it started from.
    training.train(tiny(tmp_path / "a", start_from=str(folder), iterations=1, meta_lr=1e-30))
    training.train(tiny(tmp_path / "b", iterations=1, meta_lr=1e-30))
    started, fresh = (
        final_weights(tmp_path / "a")[checkpoint.BEST],
        final_weights(tmp_path / "b")[checkpoint.BEST],
    )
    assert (started["linear.weight"] == trained["linear.weight"]).all()
    assert (fresh["linear.weight"] != trained["linear.weight"]).any()
    assert all((started[name] == trained[name]).all() for name in trained if name.startswith("block"))


def test_a_run_trains_on_distorted_copies_where_asked(finished, tmp_path):
    folder, _ = finished
    training.train(tiny(tmp_path / "run", distortions=1))
    plain, distorted = (
        [float(row["loss"]) for row in read_metrics(os.path.join(str(place), "metrics.csv"))]
        for place in (folder, tmp_path / "run")
    )
    assert len(plain) == len(distorted) and plain != distorted


def test_a_run_starts_from_weights_of_more_classes_and_of_other_inner_steps(finished, tmp_path):
    rates = {"learn_inner_lr": True, "inner_lr": 0.3}
    training.train(tiny(tmp_path / "more", n_way=4, inner_steps=2, iterations=3, **rates))
    more = final_weights(tmp_path / "more")[checkpoint.BEST]
    for steps, expected in ((1, [0]), (3, [0, 1, 1])):
        folder = tmp_path / str(steps)
        training.train(
            tiny(
                folder,
                start_from=str(tmp_path / "more"),
                n_way=3,
                inner_steps=steps,
                iterations=1,
                meta_lr=1e-30,
                **rates,
            )
        )
        started = final_weights(folder)[checkpoint.BEST]
        assert (started["linear.weight"] == more["linear.weight"][:, :3]).all() and (
            started["linear.bias"] == more["linear.bias"][:3]
        ).all()
        assert (started["inner_rates"] == more["inner_rates"][expected]).all()
    assert (more["inner_rates"][0] != more["inner_rates"][1]).any()
    training.train(
        tiny(
            tmp_path / "scaled",
            start_from=str(tmp_path / "more"),
            start_inner_lr_factor=0.5,
            n_way=3,
            inner_steps=1,
            iterations=1,
            meta_lr=1e-30,
            **rates,
        )
    )
    scaled = final_weights(tmp_path / "scaled")[checkpoint.BEST]
    assert (scaled["inner_rates"] == more["inner_rates"][[0]] / 2).all()


@pytest.mark.parametrize("name", [name for name, values in PRESETS.items() if values.get("start_from")])
def test_presets_start_from_weights_that_are_there_and_fit(name):
    settings = settings_from_preset(name)
    images = assembly.load_images(settings_from_preset("quickstart"))[0]["train"]
    learner = assembly.make_learner(settings, images)
    *_, last = (name for name in learner.state_dict() if name.endswith(".weight"))
    fresh = learner.state_dict()[last].numpy().copy()
    load_weights(learner, provenance.start_weights(settings)[0], fit=True)
    assert (learner.state_dict()[last].numpy() != fresh).all()


@pytest.mark.parametrize("changes", [{"split_rule": "vinyals"}, {"width": 8}, {"n_way": 30}])
def test_who_changes_a_preset_that_starts_from_weights_learns_how_to_decline_them(
    tmp_path, monkeypatch, changes
):
    drawn = assembly.load_training_images(tiny(tmp_path, k_query=1))
    monkeypatch.setattr(training, "load_training_images", lambda *_: drawn)
    with pytest.raises(UserError, match="; --start-from none begins with fresh weights[.]$"):
        training.train(
            settings_from_preset(
                "best-5way-1shot",
                device="cpu",
                output=str(tmp_path / "run"),
                test_k_query=1,
                k_query=1,
                **changes,
            )
        )


def test_a_report_names_the_weights_that_the_run_started_from(finished, tmp_path):
    folder, report = finished
    assert report["start_sha256"] is None
    weights, _ = provenance.find_weights(str(folder))
    started = training.train(tiny(tmp_path / "run", start_from=str(folder), iterations=1))
    assert started["start_sha256"] == files.digest_of(weights.data)


def test_weights_of_fewer_classes_are_refused(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(UserError, match="belongs to another network: linear.weight"):
        training.train(tiny(tmp_path / "run", start_from=str(folder), n_way=6))


def test_weights_that_know_the_classes_held_back_are_refused(finished, tmp_path, monkeypatch):
    parts, rule = assembly.load_training_images(tiny(tmp_path))
    monkeypatch.setattr(training, "load_training_images", lambda *_: (parts, rule))
    held_back = {
        "dataset": "omniglot",
        "split_rule": "vinyals",
        "start_from": "5way-1shot",
        "width": 64,
        "inner_steps": 3,
        "learn_inner_lr": True,
    }
    sentence = (
        "^--start-from is '5way-1shot', but these weights were trained on [0-9]+ classes that the "
        "split vinyals holds back"
    )
    with pytest.raises(UserError, match=sentence):
        training.train(tiny(tmp_path / "run", **held_back))
    assert not (tmp_path / "run").exists()
    short = {**held_back, "iterations": 1, "k_query": 1, "meta_batch": 1}
    training.train(tiny(tmp_path / "run", **{**short, "split_rule": "competition"}))
    # Drawn characters in between hide nothing.
    report = training.train(tiny(tmp_path / "drawn", **{**short, "dataset": "synthetic"}))
    assert report["trained_on"] == ["omniglot competition", "synthetic"]
    with pytest.raises(UserError, match="were trained on [0-9]+ classes that the split vinyals holds back"):
        training.train(tiny(tmp_path / "refused", **{**short, "start_from": str(tmp_path / "drawn")}))


def test_weights_of_another_architecture_are_refused_though_their_shapes_fit(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(UserError, match="a network of --architecture pool: train that; --start-from none"):
        training.train(tiny(tmp_path / "run", start_from=str(folder), architecture="stride"))


def test_what_is_not_known_of_the_first_weights_stays_unknown(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "copy.pdparams").write_bytes(Path(provenance.find_weights(str(folder))[0]).read_bytes())
    training.train(tiny(tmp_path / "one", start_from=str(tmp_path / "copy.pdparams"), iterations=1))
    report = training.train(tiny(tmp_path / "two", start_from=str(tmp_path / "one"), iterations=1))
    assert report["trained_on"] == ["synthetic", provenance.UNKNOWN]
    training.train(tiny(tmp_path / "two", start_from=str(tmp_path / "one"), iterations=2, resume=True))
    assert provenance.find_weights(str(tmp_path / "two"))[1].trained_on == report["trained_on"]


def test_a_run_of_a_version_that_did_not_say_what_it_was_trained_on_goes_on(tmp_path):
    training.train(tiny(tmp_path / "run", iterations=2))
    path = os.path.join(checkpoint.newest_checkpoint(str(tmp_path / "run")), checkpoint.STATES)
    states = {name: value for name, value in read_file(path).items() if name != "trained_on"}
    paddle.save(states, path)
    assert training.train(tiny(tmp_path / "run", iterations=3, resume=True))["trained_on"] == ["synthetic"]


def test_before_the_first_validation_the_newest_weights_stand_for_the_best(tmp_path, monkeypatch):
    def stopped(folder):
        if folder.trainer.state.iteration == 3:
            raise training.Interrupted("stopped by the test")

    monkeypatch.setattr(run_folder.RunFolder, "stop_if_asked", stopped)
    with pytest.raises(training.Interrupted):
        training.train(tiny(tmp_path / "run", checkpoint_every=1, val_every=100))
    weights = final_weights(tmp_path / "run")
    assert all(
        (weights[checkpoint.BEST][name] == array).all() for name, array in weights[checkpoint.WEIGHTS].items()
    )


def test_a_killed_run_that_started_from_weights_does_not_need_them_again(finished, tmp_path, capsys):
    folder, _ = finished
    weights = tmp_path / "weights.pdparams"
    with open(provenance.find_weights(str(folder))[0], "rb") as file:
        weights.write_bytes(file.read())
    training.train(tiny(tmp_path / "run", start_from=str(weights), iterations=4))
    assert "not known" in capsys.readouterr().out
    weights.unlink()
    training.train(tiny(tmp_path / "run", start_from=str(weights), iterations=6, resume=True))
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["iteration"] == "6"


@pytest.mark.parametrize(
    "start_from, changes, sentence",
    [
        ("nothing", {}, "There is no file or folder nothing, and no pretrained weights of that name"),
        (None, {"width": 5}, "belongs to another network"),
    ],
)
def test_weights_that_cannot_be_started_from_are_refused(finished, tmp_path, start_from, changes, sentence):
    folder, _ = finished
    with pytest.raises(UserError, match=sentence):
        training.train(tiny(tmp_path / "run", start_from=start_from or str(folder), **changes))
    assert not (tmp_path / "run").exists()

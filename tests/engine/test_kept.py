"""What a run keeps beside its best weights: those of further validations, and a moving average; and training
with more classes than the test has."""

import json
import os

import numpy as np
import pytest
from tiny_run import TINY

from paddle_maml import files
from paddle_maml.commands import cli
from paddle_maml.engine import assembly, checkpoint, training
from paddle_maml.engine.averaging import average
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.provenance import find_weights
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError
from paddle_maml.report.log import METRICS, read_metrics

pytestmark = pytest.mark.usefixtures("drawn_once")

ALL = {"keep_best": 3, "average_weights": 0.9, "train_n_way": 7, "val_every": 2}


def tiny(folder, **changes):
    return settings_from_preset(**{**TINY, "output": str(folder), **changes})


def end_of(folder):
    """All arrays of the newest checkpoint set, by file and name, and the plain values that are no times."""
    path = checkpoint.newest_checkpoint(str(folder))
    files = {name: read_file(os.path.join(path, name)) for name in os.listdir(path)}
    states = files.pop(checkpoint.STATES)
    return files, {name: states[name] for name in ("kept", "best_iteration", "iteration")}


def kept_files(folder):
    """The paths of the weights that a run kept, the best first."""
    found = checkpoint.read_best(str(folder), kept=True)
    return [os.path.join(found.path, name) for name in found.files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all of it, to its end: (folder, report)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, training.train(tiny(folder, **ALL))


def test_a_run_keeps_its_best_validations(whole):
    folder, report = whole
    files, states = end_of(folder)
    kept = states["kept"]
    scores = {int(row["iteration"]): float(row["val_accuracy"]) for row in _validations(folder)}
    assert len(scores) == 6 and len(kept) == 3
    # The best first, and none that is better was left out; the log has six digits.
    found = [entry["score"] for entry in kept]
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx(sorted(scores.values(), reverse=True)[:3], abs=1e-5)
    assert all(scores[entry["iteration"]] == pytest.approx(entry["score"], abs=1e-5) for entry in kept)
    assert kept[0]["iteration"] == report["validation"]["iteration"]
    assert kept[0]["score"] == report["validation"]["accuracy"]
    assert sorted(name for name in files if name.startswith("kept-")) == sorted(
        f"kept-{entry['iteration']}.pdparams" for entry in kept
    )
    best = files[f"kept-{kept[0]['iteration']}.pdparams"]
    for name, array in files[checkpoint.BEST].items():
        np.testing.assert_array_equal(best[name], array)
    paths = kept_files(folder)
    assert [os.path.basename(path) for path in paths] == [
        f"kept-{entry['iteration']}.pdparams" for entry in kept
    ]
    assert find_weights(paths[2])[1].trained_on == ["synthetic"]


def _validations(folder):
    return [row for row in read_metrics(str(folder / METRICS)) if row["val_loss"]]


def test_of_equal_validations_the_earlier_are_kept(tmp_path):
    settings = tiny(tmp_path, keep_best=3)
    trainer = training.Trainer(settings, assembly.load_training_images(settings)[0])
    for iteration, score in enumerate([0.5, 0.25, 0.5, 0.75, 0.5], 1):
        trainer.state.iteration = iteration
        trainer._keep(score, 0.1)
    assert [entry["iteration"] for entry in trainer.state.kept] == list(trainer.kept) == [4, 1, 3]


@pytest.mark.parametrize(
    "moment", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 7]
)
def test_a_run_that_was_stopped_ends_with_the_same(whole, tmp_path, monkeypatch, moment):
    original = training.meta_gradient

    def stop(learner, batch, share, ranks, **more):
        if trainer_at[0] == moment:
            raise training.Interrupted("stopped by the test")
        trainer_at[0] += 1
        return original(learner, batch, share, ranks, **more)

    trainer_at = [0]
    monkeypatch.setattr(training, "meta_gradient", stop)
    with pytest.raises(training.Interrupted):
        training.train(tiny(tmp_path / "run", checkpoint_every=1, **ALL))
    monkeypatch.setattr(training, "meta_gradient", original)
    training.train(tiny(tmp_path / "run", checkpoint_every=1, resume=True, **ALL))
    (files, states), (expected_files, expected_states) = end_of(tmp_path / "run"), end_of(whole[0])
    assert states == expected_states and files.keys() == expected_files.keys()
    for file, arrays in expected_files.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(files[file][name], array, err_msg=f"{file} {name}")


def test_kept_weights_are_written_once(tmp_path, monkeypatch):
    saved, write = [], files.write_together
    monkeypatch.setattr(files, "write_together", lambda to, new: (saved.extend(new), write(to, new)))
    training.train(tiny(tmp_path, checkpoint_every=1, val_every=4, keep_best=3))
    kept = [name for name in saved if "kept-" in name]
    assert sorted(kept) == ["kept-12.pdparams", "kept-4.pdparams", "kept-8.pdparams"]
    assert len(saved) == 3 + 13 * 4  # the sets after 0 .. 12


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    training.train(tiny(tmp_path, iterations=6, val_every=2, keep_best=2))
    assert len(kept_files(tmp_path)) == 2


def test_a_run_may_begin_to_keep_when_it_is_resumed(tmp_path):
    training.train(tiny(tmp_path, iterations=4, val_every=2))
    with pytest.raises(UserError, match="kept the best validation alone: train with --keep-best 5"):
        kept_files(tmp_path)
    training.train(tiny(tmp_path, iterations=6, val_every=2, keep_best=2, resume=True))
    assert len(kept_files(tmp_path)) == 2


# ---- the moving average ----


def test_the_average_follows_the_weights_and_is_what_is_tested(tmp_path, monkeypatch):
    seen, original = [], training.Trainer._follow

    def follow(trainer):
        original(trainer)
        seen.append((trainer.weights(), {name: array.copy() for name, array in trainer.average.items()}))

    monkeypatch.setattr(training.Trainer, "_follow", follow)
    training.train(tiny(tmp_path / "run", iterations=4, val_every=2, average_weights=0.25))
    start = training.Trainer(tiny(tmp_path), assembly.load_training_images(tiny(tmp_path))[0]).weights()
    name = "block1.conv_weight"
    expected = start[name]
    for step, (raw, averaged) in enumerate(seen, 1):
        decay = min(0.25, (1 + step) / (10 + step))  # 2/11, 3/12, then the setting
        expected = decay * expected + (1 - decay) * raw[name]
        np.testing.assert_allclose(averaged[name], expected, atol=1e-6)
    files, states = end_of(tmp_path / "run")
    np.testing.assert_array_equal(files[checkpoint.AVERAGE][name], seen[-1][1][name])
    np.testing.assert_array_equal(files[checkpoint.BEST][name], seen[states["best_iteration"] - 1][1][name])
    np.testing.assert_array_equal(files[checkpoint.WEIGHTS][name], seen[-1][0][name])
    assert (files[checkpoint.AVERAGE][name] != files[checkpoint.WEIGHTS][name]).any()


# ---- more classes in training ----


def test_training_has_more_classes_and_the_test_keeps_the_first_outputs(whole):
    folder, report = whole
    files, _ = end_of(folder)
    assert files[checkpoint.WEIGHTS]["linear.weight"].shape[1] == 7
    assert files[checkpoint.AVERAGE]["linear.weight"].shape[1] == 7
    assert files[checkpoint.BEST]["linear.weight"].shape[1] == 5
    assert report["test"]["n_way"] == 5 and report["settings"]["train_n_way"] == 7
    last = report["validation"]["iteration"] == 12
    if last:
        cut = files[checkpoint.AVERAGE]["linear.weight"][:, :5]
        np.testing.assert_array_equal(files[checkpoint.BEST]["linear.weight"], cut)


def test_the_first_outputs_are_those_that_were_trained(tmp_path):
    training.train(tiny(tmp_path, iterations=3, val_every=3, train_n_way=6))
    files, _ = end_of(tmp_path)
    raw, best = files[checkpoint.WEIGHTS], files[checkpoint.BEST]
    np.testing.assert_array_equal(best["linear.weight"], raw["linear.weight"][:, :5])
    np.testing.assert_array_equal(best["linear.bias"], raw["linear.bias"][:5])
    np.testing.assert_array_equal(best["block1.conv_weight"], raw["block1.conv_weight"])


def test_episodes_within_alphabets_in_training_and_test(tmp_path):
    settings = tiny(tmp_path, within_alphabet="mixed", test_within_alphabet=True, test_statistics="support")
    parts = assembly.load_training_images(settings)[0]
    episodes = assembly.training_episodes(settings, parts["train"])
    for index in range(6):
        builder = episodes.builders[index % 2]
        alphabets = {builder.classes[number].split("/")[0] for number, _, _ in builder.draw(index)}
        assert index % 2 == 0 or len(alphabets) == 1
    assert assembly.held_back_episodes(settings, parts["val"])._alphabets
    report = training.train(settings)
    assert report["test"]["within_alphabet"] and report["test"]["statistics"] == "support"
    assert report["test"]["note"].startswith("batch norm uses")  # and it is not transductive


def test_statistics_that_the_learner_lacks_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError, match="'population', but must be one of query, support, one"):
        training.train(tiny(tmp_path / "run", test_statistics="population"))
    assert not (tmp_path / "run").exists()


# ---- ensembles and means ----


def test_eval_takes_the_kept_weights_together(whole, tmp_path, capfd):
    folder, report = whole
    target, more = tmp_path / "best-3.json", ["--episodes", "6", "--device", "cpu"]
    assert cli.main_eval(["--weights", str(folder), "--ensemble", "--json", str(target), *more]) == 0
    output = capfd.readouterr().out
    assert "3 query images a class, ensemble of 3: " in output
    result = json.loads(target.read_text())
    assert [member["file"] for member in result["evaluation"]["ensemble"]] == [
        f"kept-{entry['iteration']}.pdparams" for entry in end_of(folder)[1]["kept"]
    ]
    # The same members by their files; the order does not matter to a mean.
    again = tmp_path / "again.json"
    paths = kept_files(folder)[::-1]
    assert cli.main_eval(["--weights", *paths, "--json", str(again), *more]) == 0
    same = json.loads(again.read_text())["evaluation"]
    assert same["loss"] == pytest.approx(result["evaluation"]["loss"], rel=1e-5)
    # What an evaluation does otherwise than the published protocol, it says.
    otherwise = ["--statistics", "support", "--inner-lr-factor", "0.5", "--within-alphabet"]
    assert cli.main_eval(["--weights", str(folder), "--json", str(again), *more, *otherwise]) == 0
    said = json.loads(again.read_text())["evaluation"]
    assert (said["statistics"], said["inner_lr_factor"], said["within_alphabet"]) == ("support", 0.5, True)
    assert (
        said["note"] == "batch norm uses the statistics of the support set alone"
        and "classes of one alphabet: " in capfd.readouterr().out
    )
    # In the table it is called what it is, and the run beside it is not.
    capfd.readouterr()
    assert cli.main(["results", "table", str(folder), str(target)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4 and "ensemble" not in lines[2]
    assert lines[3].startswith("| best-3 | ") and ", ensemble of 3 | 6 | " in lines[3]
    assert f"`python eval.py --weights {folder} --ensemble" in lines[3]
    assert cli.main(["results", "learners", str(folder), str(target)]) == 2
    assert "is of an ensemble, and not of one network" in capfd.readouterr().err


def test_ensembles_that_cannot_be(whole, tmp_path, capfd):
    folder = str(whole[0])
    training.train(tiny(tmp_path / "other", iterations=2, n_way=3))
    for arguments, sentence in (
        (["--weights", folder, str(tmp_path / "other")], "n_way is 5 of the first ones and 3 of others"),
        (["--weights", str(tmp_path / "other"), "--ensemble"], "kept the best validation alone"),
        (["--pretrained", "5way-1shot", "--ensemble"], "--pretrained is for one network, and no ensemble"),
        (["--weights", folder, folder, "--analyse", str(tmp_path / "a")], "--analyse is for one network"),
        (["--weights", kept_files(folder)[0], "--ensemble"], "is for the folder"),
        (["--weights", folder, folder], "pdparams twice: an ensemble needs different ones"),
        (["--weights", folder, folder, "--ensemble"], "pdparams twice: an ensemble needs different ones"),
    ):
        assert cli.main_eval(arguments) == 2
        errors = capfd.readouterr().err.splitlines()
        assert len(errors) == 1 and sentence in errors[0], errors


def test_the_mean_of_runs_with_one_start(whole, tmp_path, capfd):
    start = str(whole[0])
    for seed in (1, 2):
        training.train(tiny(tmp_path / str(seed), seed=seed, iterations=2, start_from=start))
    runs, target = [str(tmp_path / "1"), str(tmp_path / "2")], str(tmp_path / "mean")
    assert cli.main(["results", "average", *runs, target]) == 0
    assert sorted(os.listdir(target)) == [checkpoint.BEST, checkpoint.STATES]
    members = [read_file(find_weights(run)[0].path) for run in runs]
    mean = read_file(find_weights(target)[0].path)
    for name, array in mean.items():
        np.testing.assert_allclose(array, (members[0][name] + members[1][name]) / 2, atol=1e-7)
        assert array.dtype == members[0][name].dtype
    states = read_file(os.path.join(target, checkpoint.STATES))
    assert len(states["averaged"]) == 2 and states["trained_on"] == ["synthetic"]
    capfd.readouterr()
    assert cli.main_eval(["--weights", target, "--episodes", "4", "--device", "cpu"]) == 0
    assert "not known" not in capfd.readouterr().out
    training.train(tiny(tmp_path / "on", iterations=1, start_from=target))

    with pytest.raises(UserError, match="is there already"):
        average(runs, target)
    with pytest.raises(UserError, match="did not start from the same weights"):
        average([start, runs[0]], str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_mean_of_what_one_run_kept(whole, tmp_path):
    average([str(whole[0])], str(tmp_path / "mean"))
    members = [read_file(path) for path in kept_files(whole[0])]
    mean = read_file(find_weights(str(tmp_path / "mean"))[0].path)
    expected = np.mean([member["linear.bias"] for member in members], axis=0)
    np.testing.assert_allclose(mean["linear.bias"], expected, atol=1e-7)

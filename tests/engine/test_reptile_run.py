"""Runs of Reptile: training, the weights that they leave, and whose weights they take."""

import os

import numpy as np
import paddle
import pytest
from tiny_run import REPTILE, TINY, call, options

from paddle_maml.engine import assembly, checkpoint, training
from paddle_maml.engine.assembly import settings_for
from paddle_maml.engine.evaluation import evaluate
from paddle_maml.engine.plain_data import read_file
from paddle_maml.engine.provenance import find_weights
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.engine.weights import load_weights, parameters_of
from paddle_maml.errors import UserError

pytestmark = pytest.mark.usefixtures("drawn_once")


def reptile(folder, **changes):
    return settings_from_preset(**{**TINY, **REPTILE, "output": str(folder), **changes})


def best_of(folder):
    return os.path.join(checkpoint.newest_checkpoint(str(folder)), checkpoint.BEST)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, report) of a run."""
    folder = tmp_path_factory.mktemp("reptile") / "run"
    return folder, training.train(reptile(folder))


def test_its_weights_give_the_accuracy_of_the_report(finished):
    folder, report = finished
    settings, parts = reptile(folder), assembly.load_images(reptile(folder))[0]
    learner = assembly.make_learner(settings, parts["test"])
    load_weights(learner, best_of(folder))
    episodes = assembly.evaluation_episodes(settings, parts["test"])
    result = evaluate(learner, episodes, settings.test_episodes, settings.steps_at_test)
    assert result["accuracy"] == report["test"]["accuracy"] and "transductive" in result["note"]
    assert report["test"]["learner"] == "reptile" and np.isfinite(report["test"]["loss"])
    assert np.asarray(read_file(best_of(folder))["second_moment"]).max() > 0
    assert parameters_of(learner) == sum(p.size for p in learner.net.parameters())


@pytest.mark.parametrize("steps, columns", [(10, 11), (11, 1)])
def test_of_many_inner_steps_the_test_scores_the_last_alone(tmp_path, steps, columns):
    test = training.train(reptile(tmp_path / "run", test_inner_steps=steps))["test"]
    assert len(test["accuracy_per_step"]) == columns and test["accuracy_per_step"][-1] == test["accuracy"]


def test_mini_batches_depend_on_seed_and_iteration_alone():
    def first(seed, iteration):
        return assembly.meta_loss_options(reptile("x", seed=seed), iteration)["draws"].permutation(50)

    assert first(1, 2).tolist() == first(1, 2).tolist()
    seeds = (0, 1, 2**32, 2**64 - 1)
    assert len({tuple(first(seed, iteration)) for seed in seeds for iteration in (0, 1, 10**9)}) == 12


def test_networks_alone_and_runs_of_maml_are_started_from_with_a_fresh_second_moment(finished, tmp_path):
    folder, _ = finished
    weights = {name: np.asarray(array) for name, array in read_file(best_of(folder)).items()}
    moment = weights.pop("second_moment")
    alone = str(tmp_path / "alone.pdparams")
    paddle.save(weights, alone)
    images = assembly.load_images(reptile(folder))[0]["test"]
    for path, kept in ((alone, False), (best_of(folder), True)):
        learner = assembly.make_learner(reptile(folder), images)
        load_weights(learner, path, fit=True)
        assert (learner.second_moment.numpy() == (moment if kept else 0)).all()
        np.testing.assert_array_equal(learner.net.linear.weight.numpy(), weights["linear.weight"])
    fewer = assembly.make_learner(reptile(folder, n_way=3), images)
    load_weights(fewer, best_of(folder), fit=True)  # the moments of five classes are none of three
    assert (fewer.second_moment.numpy() == 0).all()
    maml = assembly.make_learner(settings_from_preset(**TINY), images)
    load_weights(maml, best_of(folder), fit=True)
    np.testing.assert_array_equal(maml.net.linear.weight.numpy(), weights["linear.weight"])


def test_a_run_says_when_it_starts_from_the_weights_of_another_learner(finished, tmp_path, capfd):
    start = {**TINY, "start_from": str(finished[0]), "iterations": 1}
    training.train(settings_from_preset(**{**start, "output": str(tmp_path / "maml")}))
    training.train(reptile(tmp_path / "reptile", start_from=str(finished[0]), iterations=1))
    said = capfd.readouterr().out.split("Starting from ")[1:]
    assert [", weights of reptile." in one.splitlines()[0] for one in said] == [True, False]


def test_weights_of_another_learner_are_refused(finished):
    folder, _ = finished
    maml = assembly.make_learner(
        settings_from_preset(**TINY), assembly.load_images(reptile(folder))[0]["test"]
    )
    with pytest.raises(UserError, match="another kind of network: 'second_moment' is unknown"):
        load_weights(maml, best_of(folder))
    with pytest.raises(UserError, match="--learner is maml, but these weights were trained with reptile"):
        settings_for(find_weights(str(folder))[1].settings, {"learner": "maml"})


def test_the_length_of_a_linear_schedule_cannot_be_changed(finished):
    folder, _ = finished
    with pytest.raises(UserError, match="the meta rate of the run .* falls to 0 at 12"):
        training.train(reptile(folder, iterations=20, resume=True))


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path):
    runs = {}
    for processes in (1, 2):
        folder = str(tmp_path / str(processes))
        status, _, errors = call("train.py", options(output=folder, **{**REPTILE, "processes": processes}))
        assert status == 0, errors
        runs[processes] = read_file(os.path.join(checkpoint.newest_checkpoint(folder), checkpoint.WEIGHTS))
    for name, array in runs[1].items():
        np.testing.assert_allclose(runs[2][name], array, rtol=2e-3, atol=2e-5, err_msg=name)

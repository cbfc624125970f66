"""What one accuracy leaves out: the counts by hand, and the whole of it once."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import options

from paddle_maml import MAML, EpisodeBuilder, ImageSet
from paddle_maml.commands import cli
from paddle_maml.engine import assembly, evaluation, provenance
from paddle_maml.engine.analysis import (
    ANALYSIS,
    CONFUSION,
    WORST_EPISODES,
    Predictions,
    _by_steps,
    _confused_pairs,
    _confusion_rates,
    _counts,
    predict_episodes,
)
from paddle_maml.engine.ensemble import inner_rates
from paddle_maml.engine.weights import load_weights
from paddle_maml.learners.maml import MetaLearner


def small_learner(**options):
    return MetaLearner(MAML(n_way=5, width=4), **options)


def predictions(said):
    images = ImageSet("drawn", ("A/1", "B/1", "A/2"), np.zeros((3, 4, 1, 2, 2), np.uint8))
    builder = EpisodeBuilder(images, 2, 1, 2)
    return Predictions(builder, np.array(said), np.array([0, 0, 1, 1])), [
        [number for number, _, _ in builder.draw(i)] for i in range(len(said))
    ]


def test_accuracies_and_confusions_by_hand():
    result, classes = predictions([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]])
    assert result.accuracies.tolist() == [1, 0.75, 0.25]
    times = np.zeros((3, 3), int)
    together = np.zeros((3, 3), int)
    for episode, said in zip(classes, result.predicted):
        for right, answer in zip([0, 0, 1, 1], said):
            times[episode[right], episode[answer]] += right != answer
        for one in episode:
            for other in episode:
                together[one, other] += 2
    pairs = _confused_pairs(result.builder.classes, *_counts(result))
    assert sum(pair["times"] for pair in pairs) == 4
    assert [pair["times"] for pair in pairs] == sorted((pair["times"] for pair in pairs), reverse=True)
    names = ["A/1", "B/1", "A/2"]
    for pair in pairs:
        one, other = names.index(pair["class"]), names.index(pair["taken_for"])
        assert (pair["times"], pair["of"]) == (times[one, other], together[one, other])
    # Alphabet A has the classes 0 and 2.
    rates, alphabets = _confusion_rates(result.builder.classes, *_counts(result))
    assert alphabets == ["A", "B"]

    def rate(pairs):
        return sum(times[pair] for pair in pairs) / sum(together[pair] for pair in pairs)

    np.testing.assert_allclose(
        rates, [[rate([(0, 2), (2, 0)]), rate([(0, 1), (2, 1)])], [rate([(1, 0), (1, 2)]), 0]]
    )
    assert rates.sum() > 0


@pytest.mark.parametrize("learned", [False, True])
def test_inner_rates_are_scaled_for_a_while(learned):
    learner = small_learner(inner_lr=0.2, learn_inner_lr=learned)

    def rate():
        return learner._rates(0)[0]

    with pytest.raises(KeyError), inner_rates(learner, 4.0):
        assert rate() == pytest.approx(0.8)
        raise KeyError
    assert rate() == pytest.approx(0.2)


def test_eval_analyses_a_run(tmp_path, capsys):
    run, folder = tmp_path / "run", tmp_path / "analysis"
    assert cli.main_train(options(output=run, iterations=2)) == 0
    capsys.readouterr()
    assert (
        cli.main_eval(
            [
                "--weights",
                str(run),
                "--analyse",
                str(folder),
                "--episodes",
                "5",
                "--json",
                str(tmp_path / "copy.json"),
            ]
        )
        == 0
    )
    assert (tmp_path / "copy.json").read_text() == (folder / ANALYSIS).read_text()
    screen = capsys.readouterr().out
    analysis = json.loads((folder / ANALYSIS).read_text())["analysis"]
    assert (analysis["split"], analysis["dataset"], analysis["episodes"]) == ("test", "synthetic", 5)
    by_statistics, by_steps = analysis["accuracy_by_batch_statistics"], analysis["accuracy_by_inner_steps"]
    assert len(by_statistics) == 3 and len(by_steps) == 11 and len(analysis["accuracy_by_rate_factor"]) == 5
    # The same by the library's functions; the run adapts with 2 steps.
    weights, (settings, *_) = provenance.find_weights(str(run))
    parts, _ = assembly.load_images(settings)
    learner, builder = (
        assembly.make_learner(settings, parts["test"]),
        assembly.evaluation_episodes(settings, parts["test"]),
    )
    load_weights(learner, weights)
    for row, statistics in zip(by_statistics, ("query", "one", "support")):
        assert row["accuracy"] == predict_episodes(learner, builder, 5, 2, statistics).accuracies.mean()
    per_step = [predict_episodes(learner, builder, 5, steps).accuracies.mean() for steps in range(11)]
    assert [row["accuracy"] for row in by_steps] == pytest.approx(per_step, abs=1e-6) and [
        row["steps"] for row in by_steps
    ] == list(range(11))
    assert (
        len({row["accuracy"] for row in by_statistics + by_steps + analysis["accuracy_by_rate_factor"]}) > 3
    )
    for name, how in (
        ("accuracy_of_rotated_classes", {"rotations": True}),
        ("accuracy_within_alphabets", {"within_alphabet": True}),
    ):
        other = assembly.evaluation_episodes(settings, parts["test"], **how)
        assert other.draw(0) != builder.draw(0)
        assert analysis[name]["accuracy"] == predict_episodes(learner, other, 5, 2).accuracies.mean()
    worst = [entry["accuracy"] for entry in analysis["worst_episodes"]]
    assert (
        worst == sorted(worst)
        and len(worst) == 5
        and np.mean(worst) == pytest.approx(by_statistics[0]["accuracy"])
    )
    for said in (
        "support set and one query image",
        "classes of one alphabet",
        "classes turned at random",
        "inner steps: 10",
    ):
        assert said in screen
    for name in (CONFUSION, WORST_EPISODES):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and len(picture.getcolors(1 << 20)) > 2


def test_where_nothing_is_mistaken_the_analysis_says_so(tmp_path, capsys, monkeypatch):
    run, folder = tmp_path / "run", tmp_path / "analysis"
    assert cli.main_train(options(output=run, iterations=1)) == 0

    def right(learner, x_spt, y_spt, x_qry, *_, **__):
        labels = np.repeat(np.arange(5), x_qry.shape[1] // 5)
        return np.stack([np.eye(5)[labels]] * len(x_qry))

    monkeypatch.setattr(MetaLearner, "predict", right)
    assert cli.main_eval(["--weights", str(run), "--analyse", str(folder), "--episodes", "2"]) == 0
    assert "\nno query image was taken for another class\n" in capsys.readouterr().out
    with Image.open(folder / CONFUSION) as picture:
        assert picture.format == "PNG"


def test_inner_steps_that_diverge_leave_those_before_them():
    accuracies, losses = np.array([[0.2, 0.5, 0.2], [0.2, 0.7, 0.2]]), np.array([[1, 2, 3], [1, 2, np.nan]])
    rows = _by_steps(accuracies, losses)
    assert [row.get("accuracy") for row in rows] == pytest.approx([0.2, 0.6, None])
    assert "not a finite number" in rows[2]["not_measured"]


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main_eval(["--weights", str(tmp_path), "--analyse", str(tmp_path / "file")]) == 2
    assert "where no file can be written (Not a directory)" in capsys.readouterr().err


def test_scores_that_are_no_numbers_are_said_and_no_accuracy(monkeypatch):
    learner = small_learner()
    monkeypatch.setattr(learner, "predict", lambda x_spt, *_, **__: np.full([len(x_spt), 10, 5], np.nan))
    images = np.zeros((6, 5, 1, 28, 28), "uint8")
    with pytest.raises(evaluation.Diverged):
        predict_episodes(learner, EpisodeBuilder(images, 5, 1, 2), 2, 3)

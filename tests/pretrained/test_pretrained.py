"""Weights that come with the library: cards, digests, and that they are what their cards say."""

import json
import os

import numpy as np
import pytest
from tiny_run import ROOT, options

from paddle_maml import pretrained
from paddle_maml.commands import cli
from paddle_maml.engine import assembly, provenance
from paddle_maml.engine.ensemble import as_tested
from paddle_maml.engine.evaluation import evaluate
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.engine.weights import load_weights
from paddle_maml.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main_train(options(output=folder, iterations=2)) == 0
    return folder


@pytest.fixture
def shelf(run, tmp_path, monkeypatch):
    """A folder of its own with the weights of a tiny run, under the name tiny."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setattr(provenance, "SHELF", folder)
    with pytest.raises(UserError, match="not come to its end"):
        pretrained.add(str(tmp_path / "none"), "tiny")
    pretrained.add(str(run), "tiny")
    return run, folder


def test_a_finished_run_becomes_weights_with_a_card(shelf, capsys):
    run, folder = shelf
    assert pretrained.names() == ["tiny"]
    path, (settings, trained_on, *_), card = pretrained.look_up("tiny")
    report = json.loads((run / "report.json").read_text())
    assert (
        card["test"] == report["test"]
        and card["name"] == "tiny"
        and trained_on == card["trained_on"] == ["synthetic"]
    )
    assert (settings.width, settings.iterations, settings.output, settings.data_dir) == (
        4,
        2,
        "runs/run",
        None,
    )
    weights, _ = provenance.find_weights(str(run))
    with open(weights, "rb") as one, open(path, "rb") as other:
        assert one.read() == other.read()
    capsys.readouterr()
    assert cli.main_eval(["--pretrained", "tiny", "--episodes", "6"]) == 0
    screen = capsys.readouterr().out
    assert f"{report['test']['accuracy']:.2%} +- {report['test']['interval']:.2%}" in screen


def test_a_card_is_completed(shelf, capsys):
    run, folder = shelf
    before = json.loads((folder / "tiny.json").read_text())
    assert cli.main(["pretrained", "measure", "tiny"]) == 0
    card = json.loads((folder / "tiny.json").read_text())
    measured = card.pop(pretrained.SUPPORT_TEST)
    assert card == before and measured["statistics"] == "support"
    assert f"{measured['accuracy']:.2%} +- {measured['interval']:.2%}" in capsys.readouterr().out
    assert cli.main_eval(["--pretrained", "tiny", "--episodes", "6", "--statistics", "support"]) == 0
    assert f"{measured['accuracy']:.2%} +- {measured['interval']:.2%}" in capsys.readouterr().out


def test_cards_have_the_accuracy_by_both_statistics():
    """Of MAML, whose published protocol lets an answer depend on the other query images."""
    cards = [pretrained.look_up(name)[2] for name in pretrained.names()]
    cards = [card for card in cards if card["settings"].get("learner", "maml") == "maml"]
    lake = [card for card in cards if card["settings"]["split_rule"] == "lake"]
    assert [card["test"]["statistics"] for card in lake] == ["support"]
    cards = [card for card in cards if card not in lake]
    assert len(cards) >= 6
    for card in cards:
        published, own = card["test"], card[pretrained.SUPPORT_TEST]
        assert own["statistics"] == "support" and 0.5 < own["accuracy"] < published["accuracy"]
        alike = "classes", "episodes", "n_way", "k_shot", "k_query", "inner_steps", "seed", "split_rule"
        assert all(own[entry] == published[entry] for entry in alike)


def test_weights_that_are_not_the_cards_are_refused(shelf, capsys):
    _, folder = shelf
    with open(folder / "tiny.pdparams", "ab") as file:
        file.write(b"x")
    assert cli.main_eval(["--pretrained", "tiny"]) == 2
    assert "not the file that its card describes" in capsys.readouterr().err
    assert cli.main_eval(["--pretrained", "other"]) == 2
    assert "there are: tiny" in capsys.readouterr().err
    assert cli.main_eval(["--pretrained", "tiny", "--weights", "x"]) == 2
    assert "Both --pretrained tiny and --weights x are named" in capsys.readouterr().err


def test_classes_that_weights_were_trained_on_are_counted():
    other, same, drawn = (
        settings_from_preset(**changes)
        for changes in ({"split_rule": "vinyals"}, {}, {"dataset": "synthetic"})
    )
    trained = provenance.origin_of(settings_from_preset(), {})
    folder = os.path.join(ROOT, "data", "splits")
    sections = {
        rule: read_sections(os.path.join(folder, f"{rule}.txt")) for rule in ("competition", "vinyals")
    }
    for part in ("val", "test"):
        shared = set(sections["competition"]["train"]) & set(sections["vinyals"][part])
        assert len(shared) == provenance.classes_trained_on(trained, other, part) > 50
        assert (
            provenance.classes_trained_on(trained, same, part)
            == provenance.classes_trained_on(trained, drawn, part)
            == 0
        )
        assert (
            provenance.classes_trained_on(None, other, part)
            is provenance.classes_trained_on(None, drawn, part)
            is None
        )


def test_classes_that_the_weights_before_were_trained_on_count_too():
    vinyals, competition = (settings_from_preset(split_rule=rule) for rule in ("vinyals", "competition"))
    both = provenance.origin_of(vinyals, {"trained_on": ["omniglot competition", "omniglot vinyals"]})
    own = provenance.origin_of(competition, {})
    assert (
        provenance.classes_trained_on(both, vinyals, "test")
        == provenance.classes_trained_on(own, vinyals, "test")
        > 0
    )
    for more in (provenance.UNKNOWN, "omniglot of another version"):
        origin = provenance.origin_of(vinyals, {"trained_on": ["omniglot vinyals", more]})
        assert provenance.classes_trained_on(origin, vinyals, "test") is None


@pytest.mark.parametrize(
    "stored, more",
    [
        ({}, []),
        ({"start_sha256": "0" * 64}, [provenance.UNKNOWN]),
        ({"start_sha256": "0" * 64, "trained_on": ["omniglot vinyals"]}, []),
        ({"trained_on": ["synthetic"]}, ["synthetic"]),
        ({"trained_on": []}, []),
        ({"trained_on": [3]}, [provenance.UNKNOWN]),
        ({"trained_on": "omniglot competition"}, [provenance.UNKNOWN]),
    ],
)
def test_a_runs_own_split_is_known_whatever_it_says_of_the_weights_before(stored, more):
    assert provenance.origin_of(settings_from_preset(split_rule="vinyals"), stored).trained_on == sorted(
        ["omniglot vinyals", *more]
    )


def test_the_weights_that_come_with_the_library_know_what_they_were_trained_on():
    for name in pretrained.names():
        _, origin, card = pretrained.look_up(name)
        rule = card["settings"]["split_rule"]
        assert origin.trained_on == [f"omniglot {rule}"]
        assert rule == "competition" or name.endswith(f"-{rule}")


def test_a_name_that_is_taken_is_refused_and_so_are_strange_ones(shelf):
    run, folder = shelf
    before = (folder / "tiny.pdparams").read_bytes()
    for taken, gone in (("pdparams", None), ("json", "pdparams")):
        if gone:
            (folder / f"tiny.{gone}").rename(folder / "away")
        with pytest.raises(UserError, match=f"tiny.{taken} is there already: choose another name"):
            pretrained.add(str(run), "tiny")
    (folder / "away").rename(folder / "tiny.pdparams")
    for name in ("__init__", "ü.1", "../x", "a_b", "", "none"):
        with pytest.raises(UserError, match="must be made of letters"):
            pretrained.add(str(run), name)
    assert (folder / "tiny.pdparams").read_bytes() == before and len(list(folder.iterdir())) == 2


def test_a_disk_that_is_full_leaves_no_weights_without_a_card(shelf, fill_the_disk):
    run, folder = shelf
    fill_the_disk(2)
    with pytest.raises(OSError):
        pretrained.add(str(run), "other")
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.json", "tiny.pdparams"]


def read_sections(path):
    sections = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("["):
                names = sections.setdefault(line[1:].split("]")[0], [])
            elif line.strip() and not line.startswith("#"):
                names.append(line.strip())
    return sections


def test_an_evaluation_says_when_the_weights_know_the_classes(omniglot, capsys, tmp_path):
    for rule, said in (("vinyals", True), ("competition", False)):
        path = tmp_path / f"{rule}.json"
        assert (
            cli.main_eval(
                ["--pretrained", "5way-1shot", "--split-rule", rule, "--episodes", "2", "--json", str(path)]
            )
            == 0
        )
        assert (
            ("were trained on" in capsys.readouterr().out)
            == said
            == (json.loads(path.read_text())["classes_trained_on"] > 0)
        )


def test_weights_that_others_started_from_are_those_that_come_with_the_library():
    cards = {name: pretrained.look_up(name)[2] for name in pretrained.names()}
    started = {
        name: card["settings"]["start_from"]
        for name, card in cards.items()
        if card["settings"]["start_from"] in cards
    }
    assert len(started) >= 3
    for name, start in started.items():
        assert cards[name]["start_sha256"] == cards[start]["sha256"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "5way-1shot" else pytest.mark.slow)
        for name in pretrained.names()
    ],
)
def test_shipped_weights_are_as_good_as_their_card_says(omniglot, name):
    path, (settings, *_), card = pretrained.look_up(name)
    parts, _ = assembly.load_images(settings)
    learner = assembly.make_learner(settings, parts["test"])
    load_weights(learner, path)
    episodes = assembly.evaluation_episodes(settings, parts["test"])
    with as_tested(settings, [learner]) as tested:
        result = evaluate(tested, episodes, 200, settings.steps_at_test, every_step=False)
    # The first 200 of the card's episodes: they differ from the mean of all by chance alone.
    allowed = 1.5 * np.hypot(result["interval"], card["test"]["interval"])
    assert abs(result["accuracy"] - card["test"]["accuracy"]) <= allowed

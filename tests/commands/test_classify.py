"""eval.py --support --query: a user's own images through the command."""

import csv
import json

import pytest
from drawn import drawings, write_folder
from tiny_run import options

from paddle_maml.commands import cli


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, drawn = tmp_path_factory.mktemp("own"), drawings()
    inverted = write_folder(folder / "white", drawn[:, 5:7], change=lambda image: 255 - image)
    return write_folder(folder / "s", drawn[:, :2]), write_folder(folder / "q", drawn[:, 10:13]), inverted


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("classify") / "run")
    assert cli.main_train(options(output=folder, iterations=2)) == 0
    return folder


def of(source, *more):
    return ["--support", source[0], "--query", source[1], *more]


def test_a_table_and_a_csv_file(folders, tmp_path, capsys):
    target = tmp_path / "answers.csv"
    arguments = of(folders, "--pretrained", "5way-1shot", "--predictions", str(target))
    assert cli.main_eval(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("image "))
    assert lines[start].split() == ["image", "label", "probability", "truth"]
    assert lines[start + 1].split()[0] == f"{folders[1]}/a/00.png"
    assert (
        "5 classes with 2 support images each, 15 query images, batch statistics of the support set." in lines
    )
    with open(target, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 and rows[3]["image"] == f"{folders[1]}/b/00.png" and rows[3]["truth"] == "b"
    right = sum(row["label"] == row["truth"] for row in rows)
    assert right >= 12 and f"Accuracy: {right / 15:.1%} of 15 query images." in lines
    for row in rows:
        by_class = [float(row[f"p({label})"]) for label in "abcde"]
        assert sum(by_class) == pytest.approx(1) and max(by_class) == float(row["probability"])


def test_a_run_folder_and_a_json_file(folders, run_folder, tmp_path, capsys):
    target = tmp_path / "answers.json"
    source = folders[0], folders[2]
    arguments = of(source, "--weights", run_folder, "--statistics", "query", "--predictions", str(target))
    assert cli.main_eval(arguments) == 0
    report = json.loads(target.read_text())
    assert [row["truth"] for row in report["predictions"]] == list("aabbccddee")
    assert report["statistics"] == "query" and report["inverted"] == {"support": 0, "query": 10}
    assert report["shots"] == dict.fromkeys("abcde", 2) and report["settings"]["width"] == 4
    assert "made dark on light: 0 support and 10 query images" in capsys.readouterr().out
    assert cli.main_eval(of(source, "--weights", run_folder, "--ink", "light")) == 0
    assert "made dark on light: 10 support and 10 query images" in capsys.readouterr().out
    for statistics in ("one", "population"):
        assert cli.main_eval(of(source, "--weights", run_folder, "--statistics", statistics)) == 2
        assert f"is '{statistics}', but must be one of support, query" in capsys.readouterr().err


def test_learners_that_embed_take_any_number_of_classes(tmp_path, capsys):
    run, drawn = str(tmp_path / "run"), drawings(8)
    given = options(output=run, iterations=2, learner="prototypical")
    for name in ("--inner-steps", "--inner-lr"):
        if name in given:
            del given[given.index(name) : given.index(name) + 2]
    assert cli.main_train(given) == 0
    source = [write_folder(tmp_path / name, drawn[:, place], "abcdefgh") for name, place in PLACES]
    assert cli.main_eval(of(source, "--weights", run)) == 0
    said = capsys.readouterr().out
    assert "8 classes with 1 support images each, 8 query images, batch statistics of training images" in said


@pytest.mark.parametrize("learner", ["anil", "reptile", "lstm"])
def test_other_learners_do_the_same(learner, tmp_path, capsys):
    run, drawn = str(tmp_path / "run"), drawings(6)
    given = options(output=run, iterations=2, learner=learner)
    for name in ["--inner-steps"] * (learner == "lstm"):
        del given[given.index(name) : given.index(name) + 2]
    assert cli.main_train(given) == 0
    for count in (5, 6):
        source = [write_folder(tmp_path / name, drawn[:count, place], "abcdef") for name, place in PLACES]
        status = cli.main_eval(of(source, "--weights", run))
        output, errors = capsys.readouterr()
        if count == 5:
            assert status == 0 and "5 classes with 1 support images each, 5 query images" in output
            assert "batch statistics of " + ("training" if learner == "lstm" else "the support set") in output
        else:
            assert status == 2 and "has 6 classes, but these weights tell 2 to 5 apart" in errors


PLACES = ("support", slice(1)), ("query", slice(5, 6))


def test_weights_of_a_folder_take_images_as_they_are(tmp_path, capsys):
    """Nothing is inverted unless it is asked for: training took light ink as it came, and colours too."""
    drawn = drawings(15)
    known = write_folder(tmp_path / "known", 255 - drawn, [f"{number:02d}" for number in range(15)])
    run = str(tmp_path / "run")
    given = options(output=run, iterations=2, dataset=f"folder:{known}", in_channels=3, n_way=3)
    assert cli.main_train(given) == 0
    source = [write_folder(tmp_path / name, 255 - drawn[:3, place]) for name, place in PLACES]
    assert cli.main_eval(of(source, "--weights", run)) == 0
    said = capsys.readouterr().out
    assert "3 classes" in said and "made dark on light" not in said
    assert cli.main_eval(of(source, "--weights", run, "--ink", "light")) == 0
    assert "made dark on light: 3 support and 3 query images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--support", "s"], "--query is missing: --support and --query belong together"),
        (["--query", "s"], "--support is missing"),
        (["--ink", "dark"], "--support is missing"),
        (["--predictions", "x.csv"], "--predictions is for your own images"),
        (["--support", "s", "--query", "q", "--predictions", "x.txt"], "must end in .csv or .json"),
        (["--support", "s", "--query", "q", "--predictions", "/no/x.csv"], "no file can be written"),
        (["--support", "s", "--query", "q", "--episodes", "7"], "--episodes says nothing to your own images"),
        (["--support", "s", "--query", "q", "--split", "val"], "--split says nothing to your own images"),
        (["--support", "s", "--query", "q", "--json", "x"], "--json says nothing to your own images"),
        (["--support", "/nosuch", "--query", "q"], "There is no file or folder /nosuch"),
        (["--analyse", "x", "--statistics", "one"], "--statistics says nothing to --analyse"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main_eval(["--pretrained", "5way-1shot", "--device", "cpu", *arguments]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors
    assert not list(tmp_path.iterdir())


def test_episodes_with_the_statistics_of_the_support_set(run_folder, capsys, tmp_path):
    results = {}
    for statistics in ("support", "one", "query"):
        target = str(tmp_path / statistics)
        arguments = ["--weights", run_folder, "--episodes", "6", "--statistics", statistics, "--json", target]
        assert cli.main_eval(arguments) == 0
        with open(target) as file:
            results[statistics] = json.load(file)["evaluation"]
    said = capsys.readouterr().out
    assert "Note: batch norm uses the statistics of the support set alone" in said
    assert results["support"]["statistics"] == "support" and len(results["support"]["loss_per_step"]) == 1
    assert results["support"]["accuracy"] != results["query"]["accuracy"]
    assert cli.main_eval(["--weights", run_folder, "--statistics", "population"]) == 2
    assert "is 'population', but must be one of query, support, one" in capsys.readouterr().err


@pytest.mark.parametrize("main", [cli.main_train, cli.main_eval])
def test_help_is_in_groups(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    groups, title = {}, None
    for line in said.splitlines():
        if line[:1].isalpha() and line.endswith(":"):
            title = line[:-1]
        elif line.startswith("  -"):
            groups.setdefault(title, []).append(line.split()[0])
    own = [] if main is cli.main_train else ["weights", "your own images"]
    assert list(groups)[1:] == [*own, "data", "task", "learner", "training", "output"]
    for option, group in (
        ("--learner", "learner"),
        ("--image-size", "learner"),
        ("--n-way", "task"),
        ("--split-rule", "data"),
    ):
        assert option in groups[group]
    assert list(groups.values())[0] == (["-h,"] if own else ["-h,", "--preset"])

"""The table of learners, from made-up reports."""

import json
from pathlib import Path

import pytest
from PIL import Image

from paddle_maml.commands import cli
from paddle_maml.engine.comparison import compare, table
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError

MACHINE = {"processor": "A processor", "cores": 2, "device": "cpu", "paddle": "3.3.1"}


@pytest.fixture
def report(tmp_path):
    """A function that writes a made-up report and returns its path."""
    written = []

    def write(accuracy, n_way=5, k_shot=1, part="evaluation", test=None, settings=None, **more):
        path = tmp_path / f"{len(written)}.json"
        written.append(path)
        tested = {
            "dataset": "omniglot",
            "split_rule": "competition",
            "split": "test",
            "k_query": 15,
            "n_way": n_way,
            "k_shot": k_shot,
            "accuracy": accuracy,
            "interval": 0.0123,
            "episodes": 9,
            **(test or {}),
        }
        content = {part: tested, "settings": settings_from_preset(**(settings or {})).as_dict(), **more}
        path.write_text(json.dumps(content))
        return str(path)

    return write


FINE = {"learner": "fine-tuning", "adapted": "head"}


def test_reports_of_one_learner_become_one_row(report, tmp_path):
    times = {"adapt_s": 0.0124, "query_s": 0.00056, "repeat": 21}
    note = {"note": "transductive: ..."}
    paths = [
        report(0.991, part="test", test=note, training_seconds=5400.0, start_sha256="0" * 64),
        report(0.95, settings=FINE, times=times, environment=MACHINE, parameters=112064),
        report(0.85, 20, settings=FINE, parameters=112064),
        report(0.97, test={**note, "statistics": "query"}, settings=FINE),
        report(0.9, 5, 5, test={**note, "statistics": "population"}, settings=FINE),
        report(0.96, settings={**FINE, "head": "cosine"}, training_seconds=720.0, start_sha256=None),
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(
        json.dumps({**json.loads(Path(paths[1]).read_text()), "training_seconds": 3600})
    )
    lines = table([*paths, str(tmp_path / "run")]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert len(lines) == 8 and lines[6] == ""
    assert cells[0] == (
        ["maml", "yes", "99.10 ± 1.23", "", "", "", "where gradient steps begin", "1.5+", "", ""]
    )
    assert cells[1] == (
        ["fine-tuning, linear head", "no", "95.00 ± 1.23", "90.00 ± 1.23", "85.00 ± 1.23", ""]
        + ["an embedding, 112,064 numbers", "1.0", "12.4", "0.56"]
    )
    assert cells[2][:3] == ["fine-tuning, linear head", "yes", "97.00 ± 1.23"] and cells[2][7:] == [
        "",
        "",
        "",
    ]
    assert cells[3][:3] == ["fine-tuning, cosine head", "no", "96.00 ± 1.23"] and cells[3][7] == "0.2"
    assert (
        "A processor, 2 cores, device cpu, Paddle 3.3.1" in lines[7] and "+: after other weights" in lines[7]
    )


def test_a_second_test_by_the_support_sets_statistics_is_a_row_of_its_own(report):
    support = {"n_way": 5, "k_shot": 1, "accuracy": 0.98, "interval": 0.01, "statistics": "support"}
    support = {**support, "dataset": "omniglot", "split_rule": "competition", "split": "test", "k_query": 15}
    note = {"note": "transductive: ..."}
    path = report(0.99, part="test", test=note, training_seconds=60.0, test_support_statistics=support)
    both = compare([path])
    assert [(row["together"], row["results"]) for row in both] == [
        (True, {(5, 1): (0.99, 0.0123)}),
        (False, {(5, 1): (0.98, 0.01)}),
    ]
    assert [row["training"] for row in both] == [[(60.0, False)], []]
    with pytest.raises(UserError, match="is damaged: get it anew"):
        compare([report(0.99, part="test", test=note, test_support_statistics={"accuracy": 0.98})])


def test_maml_of_the_head_alone_is_another_learner(report):
    assert [row["learner"] for row in compare([report(0.9), report(0.8, settings={"adapted": "head"})])] == [
        "maml",
        "maml, head alone",
    ]


def test_the_same_result_twice_is_one_and_another_is_refused(report):
    one, same, other = report(0.5), report(0.5), report(0.25)
    assert len(compare([one, same, one])) == 1
    with pytest.raises(UserError, match="different results of maml for 5-way 1-shot: leave one of them out"):
        compare([one, other])


@pytest.mark.parametrize(
    "change",
    [
        {"split_rule": "vinyals"},
        {"split": "val"},
        {"k_query": 5},
        {"dataset": "synthetic"},
        {"within_alphabet": True},
        {"inner_lr_factor": 0.5},
    ],
)
def test_other_protocols_are_refused(report, change):
    [(name, value)] = change.items()
    with pytest.raises(UserError, match=f"cannot be compared with .*: {name} is {value}, and there"):
        compare([report(0.5), report(0.5, test=change)])


def test_what_is_no_report_is_refused(report, tmp_path, capsys):
    assert cli.main(["results", "learners", str(tmp_path / "none.json")]) == 2
    assert "There is no" in capsys.readouterr().err
    for content in ("no JSON", "[]", json.dumps({"evaluation": 1, "settings": {}})):
        path = tmp_path / "bad.json"
        path.write_text(content)
        assert cli.main(["results", "learners", str(path)]) == 2
        assert "bad.json is damaged" in capsys.readouterr().err
    score = {"score": 0.1, "score_name": "mean square error"}
    assert cli.main(["results", "learners", report(0.5, test=score)]) == 2
    assert "is of a regression" in capsys.readouterr().err
    assert cli.main(["results", "table", report(0.5), "--picture", "x.png"]) == 2
    assert "--picture says nothing to table" in capsys.readouterr().err


def test_the_picture_has_a_point_for_each_time(report, tmp_path, capsys):
    picture = tmp_path / "learners.png"
    fast, slow = ({"adapt_s": seconds, "query_s": 0.001, "repeat": 1} for seconds in (0.002, 0.5))
    paths = [report(0.9, times=fast), report(0.99, settings=FINE, times=slow)]
    assert cli.main(["results", "learners", *paths, "--picture", str(picture)]) == 0
    assert "| maml | no | 90.00" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (600, 440)
    with pytest.raises(UserError, match="No report has times"):
        table([report(0.9)], str(picture))

"""What is kept of finished runs, and the table of it."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, options

from paddle_maml import pretrained
from paddle_maml.commands import cli
from paddle_maml.engine import comparison, results
from paddle_maml.engine.provenance import SHELF
from paddle_maml.engine.settings import settings_from_dict
from paddle_maml.errors import UserError
from paddle_maml.report.log import read_metrics


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main_train(options(output=folder, iterations=6, log_every=1, val_every=4)) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A finished run that a test may change."""
    monkeypatch.setattr(results, "MOST_ROWS", 2)
    return shutil.copytree(finished, tmp_path / "run")


def test_a_kept_run_names_no_place_and_its_log_is_short(run, tmp_path):
    folder = tmp_path / "kept" / "a run"
    results.keep(str(run), str(folder))
    assert sorted(os.listdir(folder)) == ["curve.png", "metrics.csv", "report.json"]
    assert str(tmp_path) not in (folder / "report.json").read_text()
    kept, original = read_metrics(folder / "metrics.csv"), read_metrics(run / "metrics.csv")
    assert [row["iteration"] for row in original] == ["1", "2", "3", "4", "5", "6"]
    # Every third row, and the validations.
    assert [row["iteration"] for row in kept] == ["3", "4", "6"] and all(row in original for row in kept)
    assert (folder / "curve.png").read_bytes() == (run / "curve.png").read_bytes()


def test_the_table_shows_what_the_report_says(run, tmp_path):
    results.keep(str(run), str(tmp_path / "kept"))
    report = json.loads((run / "report.json").read_text())
    line = results.table([str(tmp_path / "kept")]).splitlines()[-1]
    assert line.startswith(
        f"| kept | {100 * report['test']['accuracy']:.2f} ± {100 * report['test']['interval']:.2f} |"
    )
    assert line.endswith(f"| `{report_command(line)}` |") and "--iterations 6" in report_command(line)


def test_the_table_has_the_mean_and_spread_of_runs_that_differ_in_their_seeds_alone(run, tmp_path):
    report = json.loads((run / "report.json").read_text())
    folders = []
    for seed, accuracy, changes in [
        (0, 0.25, {}),
        (1, 0.5, {}),
        (2, 0.375, {"output": "elsewhere"}),
        (3, 0.9, {"inner_lr": 0.7}),
    ]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "report.json").write_text(
            json.dumps(
                {
                    **report,
                    "seed": seed,
                    "test": {**report["test"], "accuracy": accuracy},
                    "settings": {**report["settings"], "seed": seed, **changes},
                }
            )
        )
        folders.append(str(folder))
    lines = results.table(folders).splitlines()
    assert len(lines) == 2 + 4 + 1
    assert "| 3 runs | mean 37.50, spread 12.50 |" in lines[-1] and "| 0, 1, 2 |" in lines[-1]
    assert len(results.table(folders[::3]).splitlines()) == 2 + 2
    results.keep(str(run), str(tmp_path / "kept"))
    assert len(results.table([str(run), str(tmp_path / "kept")]).splitlines()) == 2 + 2
    assert len(results.table([folders[0], folders[0], os.path.join(folders[0], "")]).splitlines()) == 2 + 1


def report_command(line):
    return line.split("`")[1]


def test_a_run_that_went_on_after_its_report_is_refused(run, tmp_path):
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "iterations": 5}))
    with pytest.raises(UserError, match="went on after its report"):
        results.keep(str(run), str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"test": {}},
        {"seed": "0"},
        {"test": {"accuracy": "high"}},
        {"training_seconds": None},
        {"settings": {"breadth": 3}},
        {"settings": {"width": "64"}},
        {"iterations": 10**20},
        {"training_seconds": 10**400},
        {"test": {"accuracy": 10**400, "interval": 0.1, "episodes": 4, "n_way": 5, "k_shot": 1}},
        {"test": {"accuracy": math.nan, "interval": 0.1, "episodes": 4, "n_way": 5, "k_shot": 1}},
    ],
)
def test_damaged_reports_are_one_sentence(run, change):
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, **change}))
    with pytest.raises(UserError, match="report.json is damaged"):
        results.table([str(run)])


def test_what_is_missing_of_a_run_is_named_and_nothing_is_kept(run, tmp_path):
    for name in ("metrics.csv", "curve.png"):
        os.rename(run / name, run / "away")
        with pytest.raises(UserError, match=f"There is no .*{name}: resume the run"):
            results.keep(str(run), str(tmp_path / "kept"))
        os.rename(run / "away", run / name)
    assert not (tmp_path / "kept").exists()


def test_a_disk_that_is_full_leaves_what_was_kept_before(run, tmp_path, monkeypatch, fill_the_disk):
    folder = tmp_path / "kept"
    results.keep(str(run), str(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fill_the_disk(3)
    monkeypatch.setattr(results, "json_file", lambda report: b"other")
    with pytest.raises(OSError):
        results.keep(str(run), str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_line(tmp_path, capfd):
    command = [sys.executable, "-m", "paddle_maml", "results", "table", "docs/runs/half-hour"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "| half-hour | 95.89 ± 0.30 | 1000 | 1 | 1000 | 0 |" in done.stdout
    for arguments, sentence in [
        (["keep", "docs", "docs"], "is where its whole log is"),
        (["keep", "x"], "keep takes two folders"),
        (["keep", "x", ""], "is '': name one"),
        (["table", str(tmp_path)], "There is no"),
        (["keep", str(tmp_path), str(tmp_path / "y")], "has not come to its end"),
    ]:
        assert cli.main(["results", *arguments]) == 2
        assert sentence in capfd.readouterr().err
    assert not (tmp_path / "y").exists()


KEPT = sorted(str(path) for path in Path(ROOT, "docs", "runs").iterdir())


@pytest.mark.parametrize("folder", KEPT)
def test_the_page_of_results_has_the_line_of_each_kept_run(folder):
    assert results.table([folder]).splitlines()[-1] in Path(ROOT, "docs", "results.md").read_text(
        encoding="utf-8"
    )


def test_the_page_has_the_mean_and_spread_of_the_three_seeds():
    folders = [
        os.path.join(ROOT, "docs", "runs", "best-5way-1shot" + suffix)
        for suffix in ("-seed0", "-seed1", "-seed2")
    ]
    last = results.table(folders).splitlines()[-1]
    assert "mean" in last and last in Path(ROOT, "docs", "results.md").read_text(encoding="utf-8")


def test_the_page_of_learners_has_their_table(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs", "learners.md").read_text(encoding="utf-8")
    files = re.search(r"\npython -m paddle_maml results learners (.*)\n", page).group(1).split()
    assert len(files) > 4 and comparison.table(files) in page
    section = Path("README.md").read_text(encoding="utf-8").split("## Other learners")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .* ± .* \|$", section, re.M)
    assert len(rows) > 2 and all(row.split("|", 2)[2] in page for row in rows)


@pytest.mark.parametrize(
    "path", [*(os.path.join(folder, "report.json") for folder in KEPT), *map(str, SHELF.glob("*.json"))]
)
def test_the_commands_beside_results_are_those_of_todays_presets(path):
    report = json.loads(Path(path).read_text(encoding="utf-8"))
    assert report["command"] == settings_from_dict(report["settings"]).command()


def test_the_readme_says_what_the_cards_of_the_weights_say():
    section = Path(ROOT, "README.md").read_text(encoding="utf-8").split("## Results")[1].split("## ")[0]
    own = dict(re.findall(r"\| (\d+-way \d-shot) \| ([\d.]+ ± [\d.]+) \|", section))
    reports = [pretrained.look_up(name)[2] for name in pretrained.names()]
    # Perceptrons, weights of other splits and other learners have tables of their own in docs.
    cards = [
        report["test"]
        for report in reports
        if report["settings"].get("network", "conv4") == "conv4"
        and report["settings"].get("learner", "maml") == "maml"
        and report["settings"]["split_rule"] == "competition"
    ]
    assert own == {
        f"{card['n_way']}-way {card['k_shot']}-shot": f"{100 * card['accuracy']:.2f} ± "
        f"{100 * card['interval']:.2f}"
        for card in cards
    }

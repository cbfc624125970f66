"""The example of docs/own-images.md: its pictures are drawn and its commands run, with fewer meta-iterations;
and what a folder of images means to a run and to an evaluation."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import ROOT, options

from paddle_maml.commands import cli
from paddle_maml.data import omniglot
from paddle_maml.engine import checkpoint, provenance
from paddle_maml.engine.results import finished_report

PAGE = Path(ROOT, "docs", "own-images.md").read_text(encoding="utf-8")
[DRAWING] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
COMMANDS = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).splitlines()
[SUMMARY] = re.findall(r"```\n(/\S*pictures: .*?)\n```", PAGE, re.S)
SHORTER = {
    "eval.py": "--episodes 4",
    "folder:PATH": "--dataset folder:pictures --iterations 1 --val-episodes 2 --test-episodes 2 "
    "--test-k-query 2 --width 4",
    "train.py": "--iterations 30 --val-episodes 20 --test-episodes 50 --width 16",
}


@pytest.mark.slow
def test_the_example(tmp_path):
    exec(DRAWING.replace('Path("pictures"', f'Path({str(tmp_path)!r}, "pictures"'), {})
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        arguments = [
            *shlex.split(command)[1:],
            *SHORTER[next(name for name in SHORTER if name in command)].split(),
        ]
        result = subprocess.run(
            [sys.executable, str(Path(ROOT, arguments[0])), *arguments[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stderr
        if "quickstart" in command:
            shown = SUMMARY.replace(re.match(r"\S*pictures", SUMMARY)[0], str(tmp_path / "pictures"))
            assert shown in result.stdout
    report = json.loads((tmp_path / "runs" / "pictures" / "report.json").read_text())
    assert report["test"]["accuracy"] > 0.35  # chance is a fifth


# ---- small runs


def paint(root, classes, images=5, first=0):
    """Classes of one colour each, told apart at a glance."""
    for number in range(classes):
        folder = root / f"c{first + number:02d}"
        folder.mkdir(parents=True)
        for image in range(images):
            shade = 37 * (first + number) % 256, 91 * (first + number) % 256, 10 * image
            Image.new("RGB", (20, 16), shade).save(folder / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """(folder of 10 classes, run on it), with the cache out of the way."""
    place = tmp_path_factory.mktemp("own")
    before, omniglot.DATA_DIR = omniglot.DATA_DIR, place / "data"
    omniglot.DATA_DIR.mkdir()
    folder = paint(place / "painted", 10)
    assert cli.main_train(of_folder(folder, place / "run")) == 0
    yield folder, place / "run"
    omniglot.DATA_DIR = before


def of_folder(folder, output, **changes):
    values = {"iterations": 2, "n_way": 2, "test_k_query": 2, "in_channels": 3, "image_size": 16, **changes}
    return options(dataset=f"folder:{folder}", output=output, **values)


def fails(capfd, main, arguments, *parts):
    capfd.readouterr()
    assert main(arguments) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


def evaluate(capfd, *arguments):
    capfd.readouterr()
    status = cli.main_eval([*map(str, arguments), "--episodes", "4", "--device", "cpu"])
    output, errors = capfd.readouterr()
    assert status == 0, errors
    return output


def test_a_report_that_is_kept_names_the_folder_and_not_its_place(painted):
    folder, run = painted
    report = json.loads((run / "report.json").read_text())
    assert report["settings"]["dataset"] == f"folder:{folder}"
    assert report["trained_on"] == ["folder:painted"] and report["test"]["dataset"] == "folder:painted"
    assert (report["test"]["split_rule"], report["test"]["classes"]) == ("random 0", 2)
    kept, _ = finished_report(str(run))
    assert str(folder.parent) not in json.dumps(kept)
    assert "--dataset folder:painted" in kept["command"]


def test_evaluation_knows_what_the_weights_have_seen(painted, tmp_path, capfd):
    folder, run = painted
    own = evaluate(capfd, "--weights", run)
    assert "10 classes of 5 images, 50 in all" in own and "these weights were trained" not in own
    assert "trained on 6 of the classes" in evaluate(capfd, "--weights", run, "--split", "all")
    other_seed = evaluate(capfd, "--weights", run, "--split-seed", "1")
    listed = {seed: provenance.list_folder(str(folder)).divided(seed)[0] for seed in (0, 1)}
    shared = set(listed[0]["train"]) & set(listed[1]["test"])
    assert shared and f"trained on {len(shared)} of the classes" in other_seed
    other = paint(tmp_path / "other", 3, first=50)
    text = evaluate(capfd, "--weights", run, "--dataset", f"folder:{other}", "--split", "all")
    assert "folder:other, all split" in text and "not known" in text
    elsewhere = ["--weights", str(run), "--dataset", f"folder:{other}"]
    fails(capfd, cli.main_eval, elsewhere, "n_way is 2, but test has 0", "--split all")
    fails(capfd, cli.main_eval, ["--weights", str(run), "--in-channels", "1"], "--in-channels is 1", "with 3")
    fails(capfd, cli.main_eval, ["--pretrained", "5way-1shot", "--split", "all"], "--split is all")


def test_a_run_goes_on_where_its_folder_went_and_not_when_it_has_changed(painted, tmp_path, capfd):
    folder, _ = painted
    run, moved = str(tmp_path / "run"), tmp_path / "moved"
    own = paint(tmp_path / "mine", 10)
    assert cli.main_train(of_folder(own, run)) == 0
    own.rename(moved)
    again = ["--resume", "--output", run, "--iterations", "3"]
    fails(capfd, cli.main_train, again, "There is no folder", "mine")
    assert cli.main_train([*again, "--dataset", f"folder:{moved}"]) == 0
    assert checkpoint.read_newest(run).settings.dataset == f"folder:{moved}"
    (moved / "c00" / "0.png").unlink()
    again[-1] = "4"
    fails(capfd, cli.main_train, again, "are not those that the run", "put those back")


def test_what_is_wrong_with_a_folder_is_said_in_a_sentence(painted, tmp_path, capfd):
    folder, run = painted
    fails(capfd, cli.main_train, ["--preset", "folder-5way-1shot"], "name it", "--dataset folder:PATH")
    fails(capfd, cli.main_train, ["--dataset", "folder:"], "--dataset is 'folder:', but must be")
    fails(capfd, cli.main_train, ["--dataset", "birds"], "folder:PATH for a folder of your own images")
    new = tmp_path / "new"
    for changes, parts in (
        ({"n_way": 3}, ["n_way is 3, but val has 2 classes", "train 6, val 2, test 2"]),
        ({"k_query": 9}, ["has 5 images, fewer than k_shot + k_query = 10", "(6 classes have too few)"]),
        ({"test_k_query": 5}, ["--test-k-query, 5", "has 5 images"]),
        ({"preprocessing": "antialias"}, ["preprocessing is antialias, but the images are your own"]),
        ({"distortions": 2}, ["distortions is 2, but the images are your own"]),
    ):
        fails(capfd, cli.main_train, of_folder(folder, new, **changes), *parts)
        assert not new.exists()
    few = paint(tmp_path / "few", 5)
    one = "val has 1 class of folder:few (train 3, val 1, test 1): add classes"
    fails(capfd, cli.main_train, of_folder(few, new), one)
    for option in ("--in-channels=3", "--split-seed=3"):
        fails(capfd, cli.main_train, ["--preset", "quickstart", option], "but the dataset is no folder")


def test_weights_of_another_division_are_refused(painted, tmp_path, capfd):
    folder, run = painted
    arguments = of_folder(folder, tmp_path / "new", start_from=run, split_seed=1)
    fails(capfd, cli.main_train, arguments, "that the split seed 1 holds back")


def test_crops_and_flips_in_a_run(painted, tmp_path):
    folder, _ = painted
    arguments = [*of_folder(folder, tmp_path / "run", iterations=1), "--random-crops", "--random-flips"]
    assert cli.main_train(arguments) == 0

"""python -m paddle_maml: the commands beside train.py and eval.py."""

import pytest
from PIL import Image
from tiny_run import options

from paddle_maml.commands import cli
from paddle_maml.engine import provenance
from paddle_maml.report.pictures import COLOURS


def test_without_a_command_it_lists_them(capfd):
    assert cli.main([]) == cli.main(["--help"]) == 0
    output = capfd.readouterr().out
    assert all(f"\n  {name} " in output for name in ("data", "splits", "results", "pretrained"))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["result"], "There is no command 'result': did you mean results?"),
        (["splits"], "required: folder"),
        (["results", "show", "x"], "invalid choice: 'show'"),
        (["data", "--data-dir", "/nowhere"], "There is no Omniglot in /nowhere"),
        (["pretrained", "add", "/nowhere", "new"], "has not come to its end"),
        (["episode", "--pretrained", "20way-1shot", "--output", "x.png"], "colours for 9 classes"),
        (["episode", "--output", "x.png"], "No weights are named: give --pretrained NAME or --weights PATH"),
        (["episode", "--pretrained", "5way-1shot", "--number=-1", "--output", "x.png"], "--number is -1"),
    ],
)
def test_mistakes_are_one_sentence(capfd, arguments, sentence):
    assert cli.main(arguments) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors


@pytest.mark.slow
def test_data_prints_the_digests(omniglot, capfd):
    assert cli.main(["data"]) == 0
    assert capfd.readouterr().out.count("(as published)") == 2


def test_an_episode_is_drawn_with_the_answers(tmp_path, capfd):
    target = tmp_path / "episode.png"
    drawn = [
        "--pretrained",
        "5way-1shot",
        "--dataset",
        "synthetic",
        "--output",
        str(target),
    ]
    assert cli.main(["episode", *drawn, "--k-query", "2"]) == 0
    said = target.read_bytes()
    assert cli.main(["episode", *drawn]) == 0 and target.read_bytes() == said  # the default
    with Image.open(target) as image:
        colours = {colour for _, colour in image.getcolors(2**20)}
    # An answer for each class; between the images the page shows through.
    assert colours >= {(*colour, 255) for colour in COLOURS[:5]} and any(colour[3] == 0 for colour in colours)
    assert f"Written: {target}" in capfd.readouterr().out


def test_weights_of_a_run_are_added(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(provenance, "SHELF", tmp_path)
    assert cli.main_train(options(output=tmp_path / "run", iterations=1)) == 0
    assert cli.main(["pretrained", "add", str(tmp_path / "run"), "new"]) == 0
    assert provenance.names() == ["new"] and str(tmp_path / "new.pdparams") in capfd.readouterr().out

"""python -m paddle_maml: the commands beside train.py and eval.py."""

import pytest
from tiny_run import options

from paddle_maml.commands import cli
from paddle_maml.engine import provenance


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


def test_weights_of_a_run_are_added(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(provenance, "SHELF", tmp_path)
    assert cli.main_train(options(output=tmp_path / "run", iterations=1)) == 0
    assert cli.main(["pretrained", "add", str(tmp_path / "run"), "new"]) == 0
    assert provenance.names() == ["new"] and str(tmp_path / "new.pdparams") in capfd.readouterr().out

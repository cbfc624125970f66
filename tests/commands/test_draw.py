"""python -m paddle_maml draw: its options, and where Gradio is missing."""

import re
import socket
import types
from importlib import metadata
from pathlib import Path

import pytest
from tiny_run import ROOT

from paddle_maml.commands import cli, draw


@pytest.fixture
def gradio_is(monkeypatch):
    """A function that lets a release of Gradio, or none, be installed."""
    version = metadata.version

    def install(release):
        def found(name):
            if name != "gradio":
                return version(name)
            if release is None:
                raise metadata.PackageNotFoundError(name)
            return release

        monkeypatch.setattr(metadata, "version", found)

    return install


def fails(capfd, *arguments):
    """The sentence that the command ends with."""
    assert cli.main(["draw", *arguments]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    "release, why",
    [
        (None, "which is missing"),
        ("6.17.3", "cannot be shown by gradio 6.17.3"),
        ("7.0.0b1", "cannot be shown by gradio 7.0.0b1"),
    ],
)
def test_without_gradio(gradio_is, capfd, release, why):
    gradio_is(release)
    said = fails(capfd)
    project = Path(ROOT, "pyproject.toml").read_text(encoding="utf-8")
    asked_for = re.search(r'^draw = \["(gradio.*)"\]$', project, re.M)[1]
    assert why in said and f"pip install '{asked_for}'" in said


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--port", "65536"], "--port is '65536', but must be a whole number from 0 to 65535"),
        (["--port", "٣"], "--port is '٣'"),
        (["--port", "-1"], "--port is '-1'"),
        (["--host", "no such host"], "The page cannot be served at --host 'no such host', --port 0 ("),
        (["--host", ""], "cannot be served at --host ''"),
        (["--host", "x" * 300], "cannot be served at --host 'xxx"),
        (["--pretrained", "5way"], "5way"),
        (["--weights", "absent"], "There is no file or folder absent"),
        (["--weights", "x", "--pretrained", "y"], "Both --pretrained y and --weights x are named"),
        (["--weights", ""], "--weights is empty"),
        (["--pretrained", ""], "--pretrained is empty"),
        (["--episodes", "3"], "unknown option --episodes"),
    ],
)
def test_mistakes(gradio_is, capfd, arguments, sentence):
    gradio_is("6.18.0")
    assert sentence in fails(capfd, "--port", "0", *arguments)


def test_weights_of_colour_images(gradio_is, monkeypatch, capfd):
    gradio_is("6.18.0")
    colour = types.SimpleNamespace(settings=types.SimpleNamespace(in_channels=3))
    monkeypatch.setattr(draw, "chosen_classifier", lambda *_: (colour, None, None))
    assert "--weights is of images with 3 channels, but drawings are grey" in fails(capfd, "--port", "0")


def test_a_port_that_is_taken(gradio_is, capfd):
    gradio_is("6.18.0")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"--host '127.0.0.1', --port {port} (" in fails(capfd, "--port", port)

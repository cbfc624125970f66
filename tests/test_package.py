"""The wheel: what is in it, and that it works where nothing of the checkout is."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from drawn import drawings, write_folder
from tiny_run import ROOT, options

import paddle_maml
from paddle_maml import installed
from paddle_maml.errors import UserError


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as `pip wheel .` does, with the setuptools that is installed."""
    if importlib.util.find_spec("setuptools") is None or _setuptools() < (70, 1):
        pytest.skip("building needs setuptools 70.1 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns(".git", "*.zip", "cache", "__pycache__", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=left)
    _run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
        + ["-w", folder, folder / "source"],
        folder,
    )
    return next(folder.glob("*.whl"))


def _setuptools():
    return tuple(int(part) for part in metadata.version("setuptools").split(".")[:2])


def _run(command, cwd, status=0, **environment):
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**variables, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout if status == 0 else result.stderr


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """A virtual environment with the wheel, which borrows Paddle from this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    inside = Path(
        _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    )
    (inside / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # With its dependencies, which are there: pip would say so if one were missing.
    said = _run([python, "-m", "pip", "install", "--no-index", wheel], folder)
    assert "Successfully installed paddle-maml-" in said and "Uninstalling" not in said
    return folder


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = next(archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    package = Path(ROOT, "paddle_maml")
    expected = {
        f"paddle_maml/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"paddle_maml/kernels/native.c", "paddle_maml/pretrained/5way-1shot.pdparams"} <= expected
    # The Paddle that is installed stays: none is required but by an extra.
    required = [line for line in about.splitlines() if line.startswith("Requires-Dist: ")]
    assert sorted(line.split()[1].split(">")[0] for line in required if "extra" not in line) == [
        "numpy",
        "pillow",
    ]
    assert f"Version: {paddle_maml.__version__}" in about


@pytest.mark.slow
def test_an_installed_library_answers(home, tmp_path):
    drawn = drawings()
    support, query = write_folder(tmp_path / "s", drawn[:, :1]), write_folder(tmp_path / "q", drawn[:, 10:12])
    program = (
        "import paddle_maml; print(paddle_maml.__file__); "
        "classifier = paddle_maml.load('5way-1shot'); "
        f"print(classifier.adapt({support!r}).predict({query!r}).accuracy)"
    )
    place, accuracy = _run([home / "bin" / "python", "-c", program], tmp_path).splitlines()
    assert place.startswith(str(home)) and float(accuracy) >= 0.8


@pytest.mark.slow
def test_installed_commands(home, tmp_path):
    train, evaluate = home / "bin" / "paddle-maml-train", home / "bin" / "paddle-maml-eval"
    assert _run([train, "--help"], tmp_path).startswith("usage: paddle-maml-train")
    said = _run([train, *options(output="run", iterations=2, processes=2)], tmp_path)
    assert "5-way 1-shot" in said and (tmp_path / "run" / "report.json").is_file()
    _run([evaluate, "--weights", "run", "--episodes", "4", "--json", "result.json"], tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["evaluation"]["episodes"] == 4
    assert "must be at least 2" in _run([evaluate, "--weights", "run", "--episodes", "1"], tmp_path, status=2)


def test_without_paddle_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    installed.require_paddle()
    installed.require_paddle.cache_clear()
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="PaddlePaddle is missing: pip install paddlepaddle"):
        paddle_maml.MAML  # noqa: B018 - asking for it is what fails
    assert paddle_maml.UserError is UserError


@pytest.mark.parametrize(
    "paddle, numpy, fine",
    [("2.6.2", "2.1.0", False), ("2.6.2", "1.26.4", True), ("3.3.1", "2.1.0", True), (None, "2.1.0", True)],
)
def test_a_numpy_that_paddle_dies_of_is_refused(monkeypatch, paddle, numpy, fine):
    def version(name):
        found = {"paddlepaddle": paddle, "numpy": numpy}.get(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    installed.require_paddle.cache_clear()
    monkeypatch.setattr(installed.metadata, "version", version)
    if fine:
        installed.require_paddle()
    else:
        with pytest.raises(UserError, match="dies of a segmentation fault with NumPy 2.1.0: pip install"):
            installed.require_paddle()
    installed.require_paddle.cache_clear()

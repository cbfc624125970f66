"""The programs of docs/readers agree with this library: they know docs/interchange.md alone."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from interchange_export import make
from tiny_run import ROOT

from paddle_maml.interchange.format import read_expected, read_export, read_trace
from paddle_maml.interchange.verify import compare, report

READERS = Path(ROOT, "docs", "readers")
# Each reader, what it needs, and the orders that it has.
NEEDS = {
    "pytorch_loop.py": ("torch", (1, 2)),
    "pytorch_func.py": ("torch", (1, 2)),
    "jax_loop.py": ("jax", (1, 2)),
    "paddle_loop.py": ("paddle", (1,)),
    "learn2learn_maml.py": ("learn2learn", (1, 2)),
    "higher_maml.py": ("higher", (1, 2)),
    "tensorflow_loop.py": ("tensorflow", (1, 2)),
    "mindspore_loop.py": ("mindspore", (1, 2)),
}
QUICK = [("pytorch_loop.py", 2)]


def read(reader, folder, path, order, dtype):
    """Let a reader make its trace."""
    package = NEEDS[reader][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    command = [sys.executable, READERS / reader, folder, path, "--order", str(order), "--dtype", dtype]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    problem = read_export(folder)
    return problem, read_trace(path, problem)


def hold(folder, problem, trace):
    """Every quantity against ours."""
    order, dtype = trace.about["order"], trace.about["dtype"]
    rows = compare(problem, read_expected(folder, problem, order, dtype), trace)
    assert all(row.agrees for row in rows), report(rows)


def test_every_reader_is_named():
    assert {path.name for path in READERS.glob("*.py")} == {*NEEDS, "pretrained_pytorch.py"}


@pytest.mark.parametrize(
    "reader, order",
    [
        pytest.param(reader, order, marks=() if (reader, order) in QUICK else pytest.mark.slow)
        for reader, (_, orders) in NEEDS.items()
        for order in orders
    ],
)
def test_ten_meta_iterations_agree_in_float64(small, tmp_path, reader, order):
    problem, trace = read(reader, small, tmp_path / "trace.npz", order, "float64")
    hold(small, problem, trace)
    assert trace.about["reader"] == reader and trace.about["lines"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pytorch_loop.py", "jax_loop.py"])
@pytest.mark.parametrize(
    "changes", [{"architecture": "stride", "image_size": 21}, {"image_size": 35, "k_shot": 2}]
)
def test_other_networks_agree_in_float64(tmp_path, reader, changes):
    folder = make(tmp_path / "export", 2, ["float64"], [2], **changes)
    hold(folder, *read(reader, folder, tmp_path / "trace.npz", 2, "float64"))


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["pytorch_loop.py", "jax_loop.py"])
def test_float32_agrees(tmp_path, reader):
    folder = make(tmp_path / "export", 10, ["float32"], [2], width=16, meta_batch=4, test_episodes=50)
    hold(folder, *read(reader, folder, tmp_path / "trace.npz", 2, "float32"))


def test_a_reader_refuses_another_version(small, tmp_path):
    (tmp_path / "interchange.json").write_text('{"format": "paddle_maml interchange", "version": 2}')
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    command = [sys.executable, str(READERS / "pytorch_loop.py"), str(tmp_path), str(tmp_path / "t.npz")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and result.stderr == "This reads version 1 of the format.\n"


def test_readers_share_what_is_no_framework():
    """What they repeat is the same: where one is mended, all are."""
    ends = set()
    for reader in NEEDS:
        text = (READERS / reader).read_text(encoding="utf-8")
        ends.add(text[text.index("\nstatus = Path(") : text.index("\nabout = {")])
        assert "paddle_maml import" not in text and "allow_pickle=True" not in text
    assert len(ends) == 1

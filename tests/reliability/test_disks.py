"""A disk that fills up at each write of a run, and folders that may not be read or written."""

import contextlib
import ctypes
import os
import shutil
import stat
import subprocess
import sys

import pytest
from tiny_run import ROOT, TINY, assert_same_end, options
from trials import EVERYTHING, assert_one_sentence, assert_refused, count, listing, some, train

from paddle_maml.commands import cli
from paddle_maml.engine import checkpoint

pytestmark = pytest.mark.slow
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone")


def go_on(folder):
    """Continue the run, or begin it where it left nothing to continue."""
    return begin(folder, *["--resume"] * bool(checkpoint.newest_checkpoint(str(folder))))


def begin(folder, *flags):
    """With few checkpoints: each has all kinds of writes."""
    return train(folder, *flags, checkpoint_every=6)


def test_a_disk_that_is_full_when_something_is_to_be_on_it(
    whole, tmp_path, fill_the_disk, capfd, monkeypatch
):
    """At each of a run's fsyncs."""
    for number in range(1, 1000, some(1, 9)):
        folder = tmp_path / f"run-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", os.fsync)  # so that it is put back
            fill_the_disk(number)
            capfd.readouterr()
            status = begin(folder)
            captured = capfd.readouterr()
        if status == 0:
            break
        assert_one_sentence(status, captured.out, captured.err)
        assert "disk is full" in captured.err
        assert go_on(folder) == 0
        assert_same_end(folder, whole)
        shutil.rmtree(folder)
        count("runs on a disk that was full at a write to it (fsync), each write in turn")
    assert number > 10


@contextlib.contextmanager
def small_disk(folder):
    """A function that sets the size of a disk of memory on a folder, in KiB."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(folder)]
    if subprocess.run(options, capture_output=True).returncode:
        pytest.skip("only who may mount can make a small disk; the test above has a full one without")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@needs_linux
def test_a_small_disk(whole, tmp_path, capfd):
    with small_disk(tmp_path / "disk") as resize:
        for size in range(4, 1000, some(4, 24)):
            resize(size)
            folder = tmp_path / "disk" / "run"
            capfd.readouterr()
            status = begin(folder)
            captured = capfd.readouterr()
            if status == 0:
                break
            assert_one_sentence(status, captured.out, captured.err)
            assert "disk is full" in captured.err
            resize(4096)
            assert go_on(folder) == 0
            assert_same_end(folder, whole)
            shutil.rmtree(folder)
            count("runs on a disk (tmpfs) of 4, 8, 12 ... KiB, too small, that went on when there was room")
        assert size > 20
        assert_same_end(folder, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_limit_on_the_size_of_files(whole, tmp_path):
    largest = max(len(data or b"") for data in listing(whole).values())
    for limit in range(500, largest, largest // some(8, 2)):
        folder = tmp_path / f"run-{limit}"
        code = (
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "import sys; from paddle_maml.commands.cli import main_train; sys.exit(main_train())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *options(output=folder, **EVERYTHING)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert_one_sentence(done.returncode, done.stdout, done.stderr)
        assert "raise the limit" in done.stderr
        assert go_on(folder) == 0
        assert_same_end(folder, whole)
        count("runs under a limit on the size of files")


# ---- permissions ----


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, PR_CAPBSET_DROP = 1, 2, 3, 24


def without_rights_of_root():
    """What is started from here on is held to the permissions of files, as every user but root is."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
            if ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def unprivileged(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=without_rights_of_root,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def permissions(path, mode):
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@needs_linux
@pytest.mark.parametrize("case", range(some(9, 3)))
def test_without_permission(whole, tmp_path, case):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    [newest] = run.glob("checkpoint-*")
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "images_background.zip").write_bytes(b"zip")
    more = ["--resume", "--output", run, "--iterations", str(TINY["iterations"] + 2)]
    locked, mode, script, arguments = [
        (tmp_path, 0o500, "train.py", options(output=tmp_path / "new")),
        (run, 0o500, "train.py", more),
        (newest / checkpoint.WEIGHTS, 0o000, "train.py", more),
        (newest / checkpoint.BEST, 0o000, "eval.py", ["--weights", run]),
        (newest, 0o000, "eval.py", ["--weights", run]),
        (run, 0o000, "eval.py", ["--weights", run]),
        (run / "metrics.csv", 0o000, "train.py", more),
        (tmp_path, 0o500, "eval.py", ["--weights", run, "--json", tmp_path / "new.json"]),
        (
            tmp_path / "zips",
            0o000,
            "train.py",
            ["--data-dir", tmp_path / "zips", "--output", tmp_path / "new"],
        ),
    ][case]
    before = listing(tmp_path)
    with permissions(locked, mode):
        assert_one_sentence(*unprivileged(script, *arguments))
    assert listing(tmp_path) == before
    count("commands without permission for a folder or file that they need")


@needs_linux
def test_a_home_that_cannot_be_written(whole, tmp_path):
    """No place for the kernel or a cache: the run says so, and goes on without."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    status, output, errors = unprivileged(
        "train.py", *options(output=tmp_path / "run", width=16), HOME=str(home), XDG_CACHE_HOME=""
    )
    assert status == 0, errors
    assert "Computing with Paddle's own operators: the native kernel could not be made" in output
    count("runs of a user whose home cannot be written to")


def test_a_report_that_cannot_be_written_says_so_before_the_work(whole, tmp_path, capfd):
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file" / "x.json", tmp_path / "none" / "x.json", tmp_path, "-", ""):
        assert_refused(capfd, cli.main_eval, ["--weights", str(whole), "--json", str(target)])
        count("targets that no file can be written to")
    assert (tmp_path / "file").read_text() == "mine"

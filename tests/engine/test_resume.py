"""A run that was ended and resumed ends with the same weights, bit for bit; more in tests/reliability."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_run import REPTILE, ROOT, assert_same_end, call, end_of, options, start

from paddle_maml.engine import checkpoint
from paddle_maml.engine.plain_data import read_file
from paddle_maml.report.log import METRICS, read_metrics


@pytest.mark.parametrize("learned", ["inner_rates", "second_moment"])
def test_what_changes_in_the_course_of_a_run_goes_on_where_it_was(tmp_path, learned):
    """Learned inner rates, the first iterations of first order, the weights of the multi-step loss and the
    schedule of the rate; Reptile's mini-batches and second moment."""
    changing = {
        "order": 2,
        "first_order_iterations": 5,
        "multi_step_iterations": 9,
        "meta_lr_schedule": "cosine",
    }
    if learned == "second_moment":
        changing = REPTILE

    def arguments(folder, *flags):
        own = ["--learn-inner-lr"] if learned == "inner_rates" else []
        return [*options(output=folder, checkpoint_every=4, val_every=5, **changing), *own, *flags]

    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    status, _, errors = call("train.py", arguments(whole))
    assert status == 0, errors
    process = start("train.py", arguments(stopped))
    while checkpoint.newest_checkpoint(stopped) in (None, os.path.join(stopped, "checkpoint-0")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    at = int(checkpoint.newest_checkpoint(stopped).rsplit("-", 1)[1])
    assert at < 12
    status, _, errors = call("train.py", arguments(stopped, "--resume"))
    assert status == 0, errors
    assert any(learned in key for _, key in end_of(whole)[0])
    assert_same_end(stopped, whole)


ENDLESS = {"iterations": 100000, "checkpoint_every": 100000, "val_every": 100000}


def wait_for_two_rows(process, folder):
    """One every three meta-iterations."""
    log = os.path.join(folder, METRICS)
    while not os.path.exists(log) or len(read_metrics(log)) < 2:
        assert process.poll() is None
        time.sleep(0.05)


def saved_iteration(folder):
    return read_file(os.path.join(checkpoint.newest_checkpoint(folder), checkpoint.STATES))["iteration"]


@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGTERM", "SIGHUP"))]
)
def test_a_signal_saves_and_exits_cleanly(tmp_path, name):
    folder = str(tmp_path / "run")
    process = start("train.py", options(output=folder, **ENDLESS))
    wait_for_two_rows(process, folder)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("\n") == 1 and "--resume" in errors and "Traceback" not in errors
    assert saved_iteration(folder) >= 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_is_closed_ends_a_run_saved(tmp_path, processes):
    """Nothing can be written there any more, and SIGHUP comes."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()

    def own_terminal():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    folder = str(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "train.py", *options(output=folder, **{**ENDLESS, "processes": processes})],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        cwd=ROOT,
        preexec_fn=own_terminal,
    )
    os.close(theirs)
    wait_for_two_rows(process, folder)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert saved_iteration(folder) >= 6

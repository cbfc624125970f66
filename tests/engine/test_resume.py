"""A process killed with SIGKILL and resumed ends with the same weights, bit for bit."""

import os
import random
import signal
import time

import numpy as np
import pytest
from tiny_run import call, options, start

from paddle_maml.engine import checkpoint
from paddle_maml.engine.plain_data import read_file
from paddle_maml.report.log import METRICS, read_metrics
from paddle_maml.report.tables import REPORT

# Every meta-iteration is saved, so that many kills fall into a write.
RUN = {"iterations": 40, "checkpoint_every": 1, "val_every": 9, "meta_lr_schedule": "cosine"}


def end_of(folder):
    path = checkpoint.newest_checkpoint(folder)
    arrays = {}
    for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER):
        arrays.update({(name, key): value for key, value in read_file(os.path.join(path, name)).items()})
    rows = [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_metrics(os.path.join(folder, METRICS))
    ]
    return arrays, rows


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kills_at_random_moments_change_nothing(tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    status, _, errors = call("train.py", options(output=whole, **RUN))
    assert status == 0, errors

    moments, kills, continued = random.Random(1), 0, 0
    for attempt in range(12):
        process = start("train.py", options(output=killed, **RUN) + ["--resume"])
        found = checkpoint.newest_checkpoint(killed)
        # Wait for the first new checkpoint, then strike within what is left; the first times also before it.
        deadline = time.monotonic() + (moments.uniform(0, 3) if attempt < 2 else 60)
        while (
            process.poll() is None
            and checkpoint.newest_checkpoint(killed) in (None, found)
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.25))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        continued += found is not None
        if process.returncode == 0:
            break
    status, _, errors = call("train.py", options(output=killed, **RUN) + ["--resume"])
    assert status == 0, errors
    assert kills >= 2 and continued >= 1

    (arrays, rows), (expected_arrays, expected_rows) = end_of(killed), end_of(whole)
    assert arrays.keys() == expected_arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=str(name))
    assert rows == expected_rows
    assert sorted(os.listdir(killed)) == sorted(os.listdir(whole))
    assert os.path.exists(os.path.join(killed, REPORT))


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
        changing = {
            "learner": "reptile",
            "inner_optimizer": "adam",
            "inner_batch": 4,
            "inner_lr": 0.003,
            "meta_lr": 0.5,
            "meta_lr_schedule": "linear",
        }

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
    (arrays, rows), (expected_arrays, expected_rows) = end_of(stopped), end_of(whole)
    assert any(learned in key for _, key in expected_arrays) and rows == expected_rows
    for name in expected_arrays:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=str(name))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_exits_cleanly(tmp_path, number):
    folder = str(tmp_path / "run")
    process = start(
        "train.py", options(output=folder, iterations=100000, checkpoint_every=100000, val_every=100000)
    )
    while (
        not os.path.exists(os.path.join(folder, METRICS))
        or len(read_metrics(os.path.join(folder, METRICS))) < 2
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("\n") == 1 and "--resume" in errors and "Traceback" not in errors
    stored = read_file(os.path.join(checkpoint.newest_checkpoint(folder), checkpoint.STATES))
    assert stored["iteration"] >= 6  # two rows, one every three meta-iterations

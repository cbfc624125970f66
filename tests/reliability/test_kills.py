"""SIGKILL at random moments, two runs in one folder, and readers of a run in training: nothing is lost."""

import os
import random
import signal
import threading
import time

import pytest
from tiny_run import assert_same_end, call, options, start
from trials import assert_one_sentence, count, some

from paddle_maml.commands import cli
from paddle_maml.engine import checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]

# Every meta-iteration is saved, so that many kills fall into a write.
RUN = {"iterations": 40, "checkpoint_every": 1, "val_every": 9, "meta_lr_schedule": "cosine"}


def resume(folder):
    return ["--resume"] * bool(checkpoint.newest_checkpoint(folder))


def strike(process, folder, found, moments):
    """Kill at a random moment, most often after the first new checkpoint; returns whether it was in time."""
    deadline = time.monotonic() + (moments.uniform(0, 4) if moments.random() < 0.2 else 60)
    while (
        process.poll() is None
        and checkpoint.newest_checkpoint(folder) in (None, found)
        and time.monotonic() < deadline
    ):
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.5))
    struck = process.poll() is None
    if struck:
        process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return struck


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_at_random_moments_change_nothing(tmp_path, processes):
    run = {**RUN, "processes": processes}
    status, _, errors = call("train.py", options(output=tmp_path / "whole", **run))
    assert status == 0, errors
    moments, kills, runs, continued = random.Random(processes), 0, 0, 0
    while kills < some(20, 3):
        runs += 1
        folder = str(tmp_path / f"killed-{runs}")
        while kills < some(20, 3):
            found = checkpoint.newest_checkpoint(folder)
            process = start("train.py", options(output=folder, **run) + resume(folder))
            struck = strike(process, folder, found, moments)
            kills += struck
            continued += found is not None
            if not struck:
                break
        status, _, errors = call("train.py", options(output=folder, **run) + resume(folder))
        assert status == 0, errors
        assert_same_end(folder, tmp_path / "whole")
    assert continued
    count(f"SIGKILLs at random moments, {processes} processes, bit-identical in the end", kills)


def test_two_runs_in_one_folder(tmp_path):
    assert call("train.py", options(output=tmp_path / "whole", **RUN))[0] == 0
    for pair in range(some(10, 1)):
        folder = str(tmp_path / f"both-{pair}")
        both = [start("train.py", options(output=folder, **RUN)) for _ in range(2)]
        ends = [(process, *process.communicate(timeout=120)) for process in both]
        ends.sort(key=lambda end: end[0].returncode)
        (winner, _, errors), (loser, output, refusal) = ends
        assert winner.returncode == 0, errors
        assert_one_sentence(loser.returncode, output, refusal)
        assert "Another process is writing to" in refusal or "holds a run already" in refusal
        assert_same_end(folder, tmp_path / "whole")
        count("pairs of runs in one folder, one of them refused")


def test_a_run_in_training_is_evaluated(tmp_path, capfd):
    folder = str(tmp_path / "run")
    endless = {**RUN, "iterations": 10**6, "val_every": 10**6}
    process = start("train.py", options(output=folder, **endless))
    try:
        while not checkpoint.newest_checkpoint(folder):
            assert process.poll() is None
            time.sleep(0.01)
        for _ in range(some(20, 3)):
            assert cli.main_eval(["--weights", folder, "--episodes", "2", "--device", "cpu"]) == 0
            count("evaluations of a run in training that saves every meta-iteration")
        until, read = time.monotonic() + some(20, 3), 0
        while time.monotonic() < until:
            checkpoint.read_best(folder)
            read += 1
        count("readings of the weights of such a run, as fast as they can be read", read)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_is_resumed_twice_at_once(tmp_path):
    """Threads stand for two who type the same command."""
    folder = str(tmp_path / "run")
    assert call("train.py", options(output=folder, **{**RUN, "meta_lr_schedule": "constant"}))[0] == 0
    more = ["--resume", "--output", folder, "--iterations", "80"]
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(call("train.py", more))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(status for status, _, _ in ends)
    assert statuses in ([0, 2], [0, 0]), ends
    for status, output, errors in ends:
        if status:
            assert_one_sentence(status, output, errors)
    assert os.path.basename(checkpoint.newest_checkpoint(folder)).startswith("checkpoint-80")

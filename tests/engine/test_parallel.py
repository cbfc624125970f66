"""Runs of several processes: the same result, whatever their number, and an end when one of them ends."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_run import ROOT, call, options, start

from paddle_maml import files
from paddle_maml.engine import checkpoint
from paddle_maml.engine.parallel import Ranks
from paddle_maml.engine.plain_data import read_file
from paddle_maml.report.log import METRICS, read_metrics

# 3 tasks: over 2 ranks they do not divide evenly, and of 4 ranks one has none.
RUN = {
    "iterations": 6,
    "checkpoint_every": 2,
    "val_every": 3,
    "val_episodes": 5,
    "test_episodes": 5,
    "meta_lr_schedule": "constant",
}


def weights(folder):
    return read_file(os.path.join(checkpoint.newest_checkpoint(str(folder)), checkpoint.WEIGHTS))


def assert_same_run(folder, expected):
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-5, err_msg=name)
    rows, others = (read_metrics(os.path.join(path, METRICS)) for path in (folder, expected))
    assert len(rows) == len(others) >= 2
    for row, other in zip(rows, others):
        assert row["iteration"] == other["iteration"] and float(row["loss"]) == pytest.approx(
            float(other["loss"]), rel=1e-4
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("alone") / "run")
    status, _, errors = call("train.py", options(output=folder, **RUN))
    assert status == 0, errors
    return folder


def test_shares_are_whole_and_even():
    for size in (1, 2, 3, 7):
        shares = [list(Ranks(rank, size).share(range(5))) for rank in range(size)]
        assert sum(shares, []) == [0, 1, 2, 3, 4]
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("processes", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (3, 4))])
def test_the_number_of_processes_changes_nothing(alone, tmp_path, processes):
    folder = str(tmp_path / "run")
    status, output, errors = call("train.py", options(output=folder, **{**RUN, "processes": processes}))
    assert (status, errors) == (0, "")
    assert output.count("test split") == 1
    assert_same_run(folder, alone)


@pytest.mark.slow
def test_a_checkpoint_of_one_number_of_processes_resumes_under_another(alone, tmp_path):
    folder = str(tmp_path / "run")
    assert call("train.py", options(output=folder, **{**RUN, "iterations": 2, "processes": 3}))[0] == 0
    status, _, errors = call(
        "train.py", ["--resume", "--output", folder, "--iterations", "6", "--processes", "2"]
    )
    assert status == 0, errors
    ours, theirs = weights(folder), weights(alone)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", ["PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"])
def test_nonsense_in_the_place_of_the_launchers_numbers_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    monkeypatch.setenv(name, "many")
    status, _, errors = call("train.py", options(output=str(tmp_path / "run"), **RUN))
    assert (status, errors.count("\n")) == (
        2,
        1,
    ) and f"{name} is 'many', but must be a whole number" in errors
    assert not (tmp_path / "run").exists()


def launch(folder, *more):
    arguments = options(output=str(folder), **RUN)
    position = arguments.index("--processes")
    del arguments[position : position + 2]
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        *more,
        os.path.join(ROOT, "train.py"),
        *arguments,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_paddles_launcher(alone, tmp_path):
    process = launch(
        tmp_path / "run", "--nproc_per_node", "2", "--backend", "gloo", "--log_dir", str(tmp_path / "logs")
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_launchers_as_on_two_machines(alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    machines = [
        launch(
            tmp_path / "run",
            "--nnodes",
            "2",
            "--master",
            master,
            "--rank",
            str(rank),
            "--nproc_per_node",
            "1",
            "--log_dir",
            str(tmp_path / f"logs{rank}"),
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        output, _ = machine.communicate(timeout=120)
        assert machine.returncode == 0, output
    assert_same_run(tmp_path / "run", alone)


def group_of(parent):
    """The processes that a run started, by /proc."""
    children = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            with open(f"/proc/{entry}/cmdline") as file:
                command = file.read()
        except (OSError, IndexError):
            continue
        if int(fields[1]) == parent and "spawn_main" in command:
            children.append(int(entry))
    return children


def running(tmp_path, processes=2):
    folder = str(tmp_path / "run")
    process = start(
        "train.py",
        options(
            output=folder, iterations=100000, val_every=100000, checkpoint_every=1000, processes=processes
        ),
    )
    while (
        not os.path.exists(os.path.join(folder, METRICS))
        or len(read_metrics(os.path.join(folder, METRICS))) < 2
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return folder, process, group_of(process.pid)


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/stat"), reason="this system has no /proc to find the processes by"
)


@needs_proc
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_dies_ends_the_run_with_a_message(tmp_path, victim):
    folder, process, members = running(tmp_path)
    assert len(members) == 2
    os.kill(sorted(members)[victim], signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: " in errors and "--resume" in errors and "Traceback" not in errors
    assert not group_of(process.pid)


@pytest.mark.slow
@needs_proc
def test_a_rank_that_does_not_listen_is_ended_by_force(tmp_path):
    """A process that is stopped stands for one that hangs in native code: it takes no signal but SIGKILL."""
    folder, process, members = running(tmp_path)
    hanging, dying = sorted(members)
    os.kill(hanging, signal.SIGSTOP)
    os.kill(dying, signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "error: " in errors
    assert not os.path.exists(f"/proc/{hanging}")


@needs_proc
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_once_and_exits_cleanly(tmp_path, number):
    folder, process, members = running(tmp_path)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1 and "--resume" in errors
    assert checkpoint.newest_checkpoint(folder) is not None and not checkpoint.newest_checkpoint(
        folder
    ).endswith("-0")


SLOW_TO_SPEAK = """
import os, sys, time
from paddle_maml.engine.signals import StopRequest
from paddle_maml.engine.processes import run_processes

def member():
    with StopRequest() as stop:
        print("ready", flush=True)
        while not stop.requested:
            time.sleep(0.01)
        if os.environ["PADDLE_TRAINER_ID"] == "0":
            time.sleep(2)
            print("said", file=sys.stderr)
    return 130

if __name__ == "__main__":
    sys.exit(run_processes(member, (), 2, "cpu"))
"""


@pytest.mark.slow
def test_who_was_told_to_stop_is_not_told_again_when_another_process_ends_first(tmp_path):
    """A second signal would end rank 0 before it says how to continue."""
    program = tmp_path / "program.py"
    program.write_text(SLOW_TO_SPEAK)
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "ready\n"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.endswith("said\n")


@pytest.mark.slow
@needs_proc
def test_a_second_signal_ends_what_does_not_listen(tmp_path):
    folder, process, members = running(tmp_path)
    os.kill(members[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "Stopped.\n"
    assert not group_of(process.pid) and not any(os.path.exists(f"/proc/{member}") for member in members)


@pytest.mark.slow
@needs_proc
def test_the_processes_die_with_the_one_that_started_them(tmp_path):
    folder, process, members = running(tmp_path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{member}") for member in members) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{member}") for member in members)


def test_processes_beside_the_launcher_are_refused(tmp_path, monkeypatch):
    from paddle_maml.commands.cli import main_train

    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "0")
    assert main_train(options(output=str(tmp_path / "run"), processes=2)) == 2
    assert not os.path.exists(tmp_path / "run")


def test_failures_are_said_once(alone):
    status, _, errors = call("train.py", options(output=alone, **{**RUN, "processes": 2}))
    assert status == 2 and errors.count("\n") == 1 and "holds a run already" in errors


@pytest.mark.slow
def test_a_failure_of_rank_0_before_the_first_step_is_said_once(alone):
    with files.lock_folder(alone):
        status, _, errors = call(
            "train.py", ["--resume", "--output", alone, "--iterations", "8", "--processes", "2"]
        )
    assert (status, errors.count("\n")) == (2, 1) and "Another process is writing to" in errors

"""A training run of a few seconds, shared by the tests of training, resume and the command line."""

import os
import subprocess
import sys

import numpy as np

from paddle_maml.engine import checkpoint
from paddle_maml.engine.plain_data import read_file
from paddle_maml.report.log import METRICS, read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

TINY = {
    "preset": "quickstart",
    "width": 4,
    "k_query": 2,
    "inner_steps": 2,
    "meta_batch": 3,
    "iterations": 12,
    "val_every": 5,
    "val_episodes": 4,
    "test_episodes": 6,
    "test_k_query": 3,
    "checkpoint_every": 2,
    "log_every": 3,
    "seed": 7,
    "device": "cpu",
    "processes": 1,
    "meta_lr_schedule": "constant",
}

# Changes to TINY.
REPTILE = {
    "learner": "reptile",
    "inner_optimizer": "adam",
    "inner_batch": 4,
    "inner_lr": 0.003,
    "meta_lr": 0.5,
    "meta_lr_schedule": "linear",
}


def options(**changes):
    """TINY with changes as command-line options."""
    return [
        part
        for name, value in {**TINY, **changes}.items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]


def start(script, arguments, **more):
    """The script at the top of the repository as a process with captured output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **more,
    )


def call(script, arguments, **more):
    """Run the script to its end: (status, output, errors)."""
    process = start(script, arguments, **more)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def end_of(folder):
    """All arrays of a run's newest checkpoint by (file, name), and its log without the times."""
    path = checkpoint.newest_checkpoint(str(folder))
    arrays = {
        (name, key): value
        for name in (checkpoint.WEIGHTS, checkpoint.BEST, checkpoint.OPTIMIZER)
        for key, value in read_file(os.path.join(path, name)).items()
    }
    rows = [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_metrics(os.path.join(folder, METRICS))
    ]
    return arrays, rows


def assert_same_end(folder, expected):
    """Two runs ended with the same weights, bit for bit, the same log and the same files."""
    (arrays, rows), (expected_arrays, expected_rows) = end_of(folder), end_of(expected)
    assert arrays.keys() == expected_arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=str(name))
    assert rows == expected_rows
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import ROOT, TINY, call, options

from paddle_maml.commands import cli
from paddle_maml.engine import checkpoint, provenance
from paddle_maml.engine.settings import settings_from_dict


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run, made by the command, whose output is (folder, output)."""
    folder = str(tmp_path_factory.mktemp("cli") / "run")
    status, output, errors = call(
        "train.py", options(output=folder, iterations=4, val_every=2, device="auto")
    )
    assert status == 0, errors
    # Nothing about absent GPU libraries, no warnings.
    assert errors == ""
    return folder, output


def fails(capfd, main, arguments, *parts):
    """The command ends with status 2 and one sentence that holds the parts."""
    assert main(arguments) == 2
    output, errors = capfd.readouterr()
    lines = errors.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    for part in parts:
        assert part in lines[0]


def test_training_prints_the_report(run_folder):
    folder, output = run_folder
    assert (
        "synthetic, test split, 5-way 1-shot" in output
        and "transductive" in output
        and "report.json" in output
    )
    assert "Computing on the CPU: " in output or "gpu" in Path(folder, "report.json").read_text()


def test_eval_of_a_run_folder_repeats_the_runs_test(run_folder, capfd, tmp_path):
    folder, _ = run_folder
    target = str(tmp_path / "result.json")
    assert cli.main_eval(["--weights", folder, "--episodes", "6", "--device", "cpu", "--json", target]) == 0
    with open(target) as file, open(os.path.join(folder, "report.json")) as other:
        evaluation, report = json.load(file), json.load(other)
    assert evaluation["evaluation"] == report["test"]
    assert "transductive" in capfd.readouterr().out


def test_the_json_of_eval_has_no_path_that_was_not_given(run_folder, monkeypatch, tmp_path):
    folder = Path(run_folder[0]).resolve()
    monkeypatch.chdir(folder.parent)
    target = tmp_path / "result.json"
    assert cli.main_eval(["--weights", folder.name, "--episodes", "2", "--json", str(target)]) == 0
    text = target.read_text()
    report = json.loads(text)
    assert str(folder.parent) not in text and report["weights"] == folder.name
    best = checkpoint.read_best(str(folder)).files[checkpoint.BEST]
    assert report["sha256"] == hashlib.sha256(best).hexdigest()


def test_eval_takes_files_parts_and_other_settings(run_folder, capfd, tmp_path):
    folder, _ = run_folder
    file = os.path.join(checkpoint.newest_checkpoint(folder), checkpoint.WEIGHTS)
    assert (
        cli.main_eval(
            [
                "--weights",
                file,
                "--split",
                "val",
                "--episodes",
                "2",
                "--inner-steps",
                "4",
                "--device",
                "cpu",
                "--inner-lr",
                "0.01",
            ]
        )
        == 0
    )
    output = capfd.readouterr().out
    assert "val split" in output and output.splitlines()[5].split()[0] == "4"
    assert "of which architecture" not in output
    lone = str(tmp_path / "weights.pdparams")
    shutil.copy(file, lone)
    # The shapes fit, and nobody can know.
    arguments = (
        "--dataset synthetic --width 4 --episodes 2 --device cpu --image-size 29 --architecture stride"
    )
    assert cli.main_eval(["--weights", lone, *arguments.split()]) == 0
    assert "of which architecture and for which image size it is; they are taken to be stride and 29" in (
        capfd.readouterr().out
    )


def test_eval_defaults_to_1000_episodes_with_15_query_images():
    from paddle_maml.engine.settings import Settings

    assert (Settings.test_episodes, Settings.test_k_query) == (1000, 15)


def test_resume_takes_the_other_settings_from_the_run(tmp_path, capfd):
    folder = str(tmp_path / "run")
    assert cli.main_train(options(output=folder, iterations=2, log_every=1)) == 0
    moved = str(tmp_path / "moved")
    os.rename(folder, moved)
    assert cli.main_train(["--resume", "--output", moved, "--iterations", "3"]) == 0
    assert "Continuing" in capfd.readouterr().out
    with open(os.path.join(moved, "report.json")) as file:
        settings = json.load(file)["settings"]
    assert settings == {
        **settings,
        **TINY,
        "iterations": 3,
        "output": moved,
        "log_every": 1,
        "device": "auto",
        "processes": 1,
    }


def test_a_run_knows_where_its_first_weights_are_from_wherever_it_is_resumed(
    run_folder, tmp_path, monkeypatch
):
    folder, _ = run_folder
    monkeypatch.chdir(os.path.dirname(folder))
    assert (
        cli.main_train(options(output=tmp_path / "run", iterations=1, start_from=os.path.basename(folder)))
        == 0
    )
    settings = json.loads((tmp_path / "run" / "report.json").read_text())["settings"]
    assert settings["start_from"] == os.path.abspath(os.path.basename(folder))
    assert settings_from_dict(settings).command().count(f"--start-from runs/{os.path.basename(folder)} ") == 1


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--n-wya", "5"], "did you mean --n-way?"),
        (["--preset", "quickstrat"], "did you mean quickstart?"),
        (["--meta-lr", "0"], "--meta-lr is 0.0"),
        (options(device="tpu"), "device is 'tpu'"),
        (options(device="gpu:99"), "gpu:99 cannot be used"),
        (options(n_way=61), "n_way"),
    ],
)
def test_bad_options_of_train(capfd, tmp_path, arguments, part):
    fails(capfd, cli.main_train, arguments + ["--output", str(tmp_path / "run")], part)
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_used(capfd, tmp_path, run_folder):
    file = tmp_path / "file"
    file.write_text("")
    fails(capfd, cli.main_train, options(output=file), "is a file")
    fails(capfd, cli.main_train, options(output=file / "run"), "not a folder")
    fails(capfd, cli.main_train, options(output=run_folder[0]), "holds a run already", "--resume")
    fails(
        capfd,
        cli.main_train,
        ["--resume", "--output", run_folder[0], "--n-way", "4"],
        "--n-way is 4",
        "started with 5",
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(capfd, tmp_path):
    tmp_path.chmod(0o500)
    fails(capfd, cli.main_train, options(output=tmp_path / "run"), "Permission is missing")


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_disk_that_is_full(tmp_path):
    """A limit on the size of files stands for a full disk: writing the first checkpoint fails, later the run
    continues."""
    import resource

    folder = str(tmp_path / "run")
    arguments = options(output=folder, iterations=2)
    status, _, errors = call(
        "train.py", arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    )
    assert status == 2 and len(errors.splitlines()) == 1 and "raise the limit" in errors, errors
    assert not os.path.exists(folder)
    assert cli.main_train(arguments) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(
    "number, moment",
    [
        pytest.param(number, moment, marks=() if moment == 1 else pytest.mark.slow)
        for number in (signal.SIGINT, signal.SIGTERM)
        for moment in (0.5, 1, 2)
    ],
)
def test_a_signal_before_there_is_anything_to_save(tmp_path, number, moment):
    # Not with one thread, as `start` does it: threads that were there before a signal was held back would
    # take it.
    command = [
        sys.executable,
        os.path.join(ROOT, "train.py"),
        *options(output=tmp_path / "run", iterations=10**6),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(moment)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -number), errors
    assert "Traceback" not in errors + output and len(errors.splitlines()) <= 1, errors + output


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_output_that_nobody_reads(tmp_path, processes):
    command = [
        sys.executable,
        os.path.join(ROOT, "train.py"),
        *options(output=tmp_path / "run", processes=processes, iterations=4),
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: Nobody reads the output")
        and len(done.stderr.splitlines()) == 1
    ), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such shell")
def test_a_standard_output_that_is_closed(tmp_path):
    command = shlex.join(
        [sys.executable, os.path.join(ROOT, "train.py"), *options(output=tmp_path / "run", iterations=2)]
    )
    done = subprocess.run(["sh", "-c", command + " >&-"], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
@pytest.mark.parametrize("name", ["enc_ü", os.fsdecode(b"enc_\xff")])
def test_an_output_that_cannot_encode_a_path(tmp_path, name):
    """Only what is printed is changed; nothing ends of it, and the run goes on."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    folder = os.path.join(str(tmp_path), name)
    for arguments in (
        options(output=folder, iterations=1),
        ["--resume", "--output", folder, "--iterations", "2"],
    ):
        done = subprocess.run(
            [sys.executable, os.path.join(ROOT, "train.py"), *arguments],
            capture_output=True,
            env=environment,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert ascii(name).strip("'").encode() in done.stdout


@pytest.mark.parametrize(
    "error, part",
    [
        (OSError(28, "No space left", "f"), "disk is full (f)"),
        (OSError(30, "ro"), "read-only"),
        (MemoryError(), "memory"),
        (PermissionError(13, "denied", "/x"), "(/x)"),
    ],
)
def test_failures_of_the_machine_are_one_sentence(capfd, monkeypatch, error, part):
    from paddle_maml.engine import training

    def fail(settings):
        raise error

    monkeypatch.setattr(training, "train", fail)
    fails(capfd, cli.main_train, options(), part)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_ctrl_c_in_a_backward_of_ours_ends_as_elsewhere(capfd):
    import paddle
    from paddle.autograd import PyLayer

    class Interrupting(PyLayer):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            signal.raise_signal(signal.SIGINT)
            return grad * 1

    def command(argument):
        x = paddle.ones([1])
        x.stop_gradient = False
        Interrupting.apply(x).backward()
        pytest.fail("nothing was interrupted")

    assert cli.run_command(command, None) == 130
    errors = capfd.readouterr().err
    # Paddle logs a line of its own before, which `prepare` silences where it comes before Paddle's import.
    assert errors.endswith("Stopped.\n") and "Traceback" not in errors


def test_errors_of_the_program_are_not_hidden(monkeypatch):
    from paddle_maml.engine import training

    def fail(settings):
        raise KeyError("a mistake")

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(KeyError):
        cli.main_train(options())


def test_bad_options_of_eval(capfd, tmp_path, run_folder):
    folder, _ = run_folder
    fails(capfd, cli.main_eval, [], "--weights")
    fails(capfd, cli.main_eval, ["--weights", str(tmp_path / "none")], "There is no file or folder")
    fails(capfd, cli.main_eval, ["--weights", str(tmp_path)], "holds no checkpoint")
    fails(
        capfd,
        cli.main_eval,
        ["--weights", folder, "--json", str(tmp_path / "none" / "x.json")],
        "where no file can be written (No such file",
    )
    fails(capfd, cli.main_eval, ["--weights", folder, "--json", str(tmp_path)], "must name a file")
    fails(capfd, cli.main_eval, ["--weights", folder, "--json="], "--json is '', but must name a file")
    fails(capfd, cli.main_eval, ["--weights", folder, "--json=-"], "--json is '-', but must name a file")
    fails(
        capfd,
        cli.main_eval,
        ["--weights", folder, "--json", str(tmp_path / "new") + os.sep],
        "must name a file",
    )
    for option in ("--json", "--analyse"):
        fails(
            capfd,
            cli.main_eval,
            ["--weights", folder, option, str(tmp_path / ("x" * 300))],
            option,
            "where no file can be",
        )
    # Short enough for a name, too long for that of the file that is renamed to it.
    fails(
        capfd,
        cli.main_eval,
        ["--weights", folder, "--json", str(tmp_path / ("x" * 240))],
        "no file can be written (File name too long)",
    )
    fails(
        capfd,
        cli.main_eval,
        ["--weights", folder, "--episodes", "0"],
        "--episodes is 0, but must be at least 2",
    )
    fails(capfd, cli.main_eval, ["--weights", folder, "--k-shot", "18"], "k_shot + k_query = 21")
    fails(
        capfd,
        cli.main_eval,
        ["--weights", folder, "--k-shot", "18", "--analyse", str(tmp_path / "new")],
        "k_shot + k_query = 21",
    )
    fails(
        capfd,
        cli.main_eval,
        ["--weights", str(tmp_path / "none"), "--analyse", str(tmp_path / "new")],
        "There is no file or folder",
    )
    assert not (tmp_path / "new").exists()
    fails(capfd, cli.main_eval, ["--weights", folder, "--meta-lr", "1"], "unknown option --meta-lr")
    for option, value, own in (
        ("--n-way", "4", "5"),
        ("--width", "8", "4"),
        ("--architecture", "stride", "pool"),
        ("--image-size", "20", "28"),
    ):
        fails(
            capfd,
            cli.main_eval,
            ["--weights", folder, option, value],
            f"{option} is {value}, but these weights were trained with {own}",
        )
    file = str(tmp_path / "alone.pdparams")
    shutil.copy(provenance.find_weights(folder)[0], file)
    fails(
        capfd,
        cli.main_eval,
        ["--weights", file, "--dataset", "synthetic", "--width", "8"],
        "has shape",
        "check dataset, network, n_way, width",
    )
    hostile = tmp_path / "hostile.pdparams"
    hostile.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    fails(capfd, cli.main_eval, ["--weights", str(hostile), "--dataset", "synthetic"], "is refused")


@pytest.mark.parametrize("script, option", [("train.py", "--inner-lr"), ("eval.py", "--split-rule")])
def test_help_does_not_wait_for_paddle(script, option):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code and "paddle" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and option in done.stdout, done.stderr

"""The two commands: they parse, call, and turn what went wrong into one sentence and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time

from ..engine.background import Interrupted
from ..engine.device import cores, gpu_count, import_paddle, prepare, select_device, signals_go_to
from ..engine.parallel import launched, run_processes, started_rank
from ..engine.settings import PRESETS, CommandLine, Settings, flag, settings_from_dict, settings_from_preset
from ..errors import UserError
from ..files import check_target
from ..report.log import ANALYSIS

# Whatever imports Paddle is imported when it is needed: after `prepare`, and not for a help text or a
# mistyped option.

FAILED, STOPPED = 2, 130


def main_train(arguments=None):
    """train.py: train and report.

    Args:
        arguments: the command line without the program's name; by default the process's.
    Returns:
        The exit status: 0, 2 for a failure that the user can mend, 130 after SIGINT or SIGTERM.
    """
    return run_command(_train, sys.argv[1:] if arguments is None else arguments)


def main_eval(arguments=None):
    """eval.py: evaluate weights and report; arguments and exit status as `main_train`."""
    return run_command(_evaluate, sys.argv[1:] if arguments is None else arguments)


def run_command(command, argument):
    """Call command(argument); its result, or what the failure stands for, is the exit status."""
    prepare()
    try:
        with _stoppable(), _standard_streams():
            status = command(argument) or 0
            sys.stdout.flush()
            return status
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        if isinstance(error, BrokenPipeError):
            _discard(sys.stdout)
        place = f" ({error.filename})" if error.filename else ""
        return _fail(_MACHINE[error.errno].format(place=place))
    except MemoryError:
        return _fail(
            "There is not enough memory for these settings; lower --chunk, --distortions, or what makes "
            "the network or an episode large."
        )
    except Interrupted as stop:
        if not started_rank():
            _complain(stop)
        return STOPPED
    except KeyboardInterrupt:
        _complain("Stopped.")
        return STOPPED


@contextlib.contextmanager
def _stoppable():
    """SIGTERM ends a command as Ctrl-C does. The members of a group of processes are left to those who
    started them."""
    if launched():
        yield
        return
    came = []

    def interrupt(number, frame):
        came.append(number)
        raise KeyboardInterrupt

    try:
        with signals_go_to(interrupt):
            yield
    except Exception as error:
        # Where a backward of ours was interrupted, Paddle makes another error of it.
        if came:
            raise KeyboardInterrupt from error
        raise


@contextlib.contextmanager
def _standard_streams():
    """Standard streams that go nowhere where there are none, as after `>&-`."""
    with contextlib.ExitStack() as opened:
        for name, redirect in (
            ("stdout", contextlib.redirect_stdout),
            ("stderr", contextlib.redirect_stderr),
        ):
            if getattr(sys, name) is None:
                opened.enter_context(redirect(opened.enter_context(open(os.devnull, "w"))))
        yield


def _discard(stream):
    """Let a stream that nobody reads any more go nowhere: Python would try it again at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text):
    try:
        print(text, file=sys.stderr)
    except OSError:
        _discard(sys.stderr)


_MACHINE = {
    errno.EPIPE: "Nobody reads the output any more, so this ends: write it to a file instead; a training "
    "run continues with --resume.",
    errno.ENOSPC: "The disk is full{place}: free some space; a training run that has begun continues with "
    "--resume.",
    errno.EDQUOT: "The disk quota is used up{place}: free some space; a training run that has begun "
    "continues with --resume.",
    errno.EFBIG: "A file may not become that large here{place}: raise the limit; a training run that has "
    "begun continues with --resume.",
    errno.EROFS: "The file system is read-only{place}: choose another folder.",
    errno.EACCES: "Permission is missing{place}: choose another folder or change its permissions.",
    errno.EPERM: "Permission is missing{place}: choose another folder or change its permissions.",
    errno.ENOTDIR: "A part of the path is not a folder{place}: choose another one.",
    errno.ENAMETOOLONG: "The path is too long{place}: choose another one.",
    errno.EISDIR: "There is a folder where a file is to be written{place}: choose another name.",
    errno.EEXIST: "There is something in the way{place}: choose another name.",
    errno.ENOENT: "There is no such file or folder{place}: choose another one.",
    errno.ELOOP: "The path has too many links{place}: choose another one.",
    errno.EIO: "The disk reports an error{place}: choose another folder, on another disk.",
}


def _fail(message):
    if started_rank():
        # Rank 0 mostly fails of the same cause: let it speak, and be ended with the others.
        time.sleep(5)
    _complain("error: " + message)
    return FAILED


def _train(arguments):
    parser = CommandLine(
        prog="train.py", description="Train MAML on Omniglot. Presets: " + ", ".join(PRESETS) + "."
    )
    parser.add_settings()
    given = parser.parse(arguments)
    settings = settings_from_preset(**given)
    import_paddle()
    from .. import pretrained
    from ..engine import assembly, checkpoint, training

    # Paths are stored with the run, which may be resumed from another folder.
    for name in ("data_dir", "start_from"):
        path = given.get(name)
        if path and os.path.exists(path) and path not in pretrained.names():
            given[name] = os.path.abspath(path)
    settings = settings_from_preset(**given)

    stored = checkpoint.stored_settings(settings.run_folder) if settings.resume else None
    if stored:
        # What is not given anew is taken from the run, wherever its folder is now. Not the device, which
        # depends on the machine; but the number of processes and the chunk, which decide in what order
        # gradients are summed.
        here = {"device": Settings.device, **({"processes": None} if launched() else {})}
        settings = settings_from_dict({**stored.as_dict(), **here, **given, "output": settings.run_folder})
    if launched():
        if settings.processes not in (None, 1):
            raise UserError(
                f"processes is {settings.processes}, but the launcher has started the processes already; "
                "leave it out."
            )
        return _train_one(settings)
    device = select_device(settings.device, announce=lambda line: None)
    processes = settings.processes or (cores() if device == "cpu" else 1)
    if processes == 1:
        return _train_one(settings)
    if device != "cpu" and (settings.device != "auto" or processes > gpu_count()):
        raise UserError(
            f"processes is {processes} with device {settings.device}, but each process takes a GPU of its "
            f"own and {gpu_count()} "
            "can be seen: use --device auto and as many processes at most."
        )
    # What can be refused is refused here, once, and the images are cached before all processes want them.
    training.refuse_other_run(settings)
    if not stored:
        training.start_weights(settings)
    assembly.load_training_images(settings)
    return run_processes(train_member, (settings,), processes, device)


def _train_one(settings):
    from ..engine.training import train

    train(settings)


def train_member(settings):
    """What each process of a run with several processes does; returns its exit status."""
    return run_command(_train_one, settings)


# The settings that matter to an evaluation, and the options that are named differently there.
_EVALUATED = (
    "dataset",
    "data_dir",
    "split_rule",
    "preprocessing",
    "n_way",
    "k_shot",
    "architecture",
    "width",
    "image_size",
    "inner_lr",
    "adapted",
    "test_inner_steps",
    "test_episodes",
    "test_k_query",
    "seed",
    "device",
    "chunk",
)
_EVAL_OPTIONS = {
    "test_episodes": ("--episodes", "episodes, numbered from 0: always the same ones for a seed"),
    "test_k_query": ("--k-query", "query images of each class"),
    "test_inner_steps": (
        "--inner-steps",
        "gradient steps on the support set; default: those of the run's tests",
    ),
    "seed": ("--seed", "decides the episodes"),
}


def _evaluate(arguments):
    asked, given = _evaluation_options(arguments)
    import_paddle()
    from .. import pretrained
    from ..engine import assembly, checkpoint
    from ..report.log import write_json

    name, part = asked["pretrained"], asked["part"]
    weights, origin = pretrained.look_up(name)[:2] if name else checkpoint.find_weights(asked["weights"])
    if origin:
        _refuse_other_network(given, origin.settings)
    # The run's own device and number of episodes say nothing about this machine and this evaluation.
    stored = {
        **(origin.settings if origin else Settings()).as_dict(),
        "device": Settings.device,
        "test_episodes": Settings.test_episodes,
    }
    settings = settings_from_dict({**stored, **given})
    if settings.learn_inner_lr and "inner_lr" in given:
        raise UserError(
            f"inner_lr is {settings.inner_lr}, but these weights have inner rates of their own: leave it out."
        )
    device = select_device(settings.device)
    parts, rule = assembly.load_images(settings)
    learner = assembly.make_learner(settings, parts[part])
    checkpoint.load_weights(learner, weights)
    seen = assembly.classes_trained_on(origin, settings, part) if part != "train" else 0
    if seen:
        print(
            f"Note: these weights were trained on {seen} of the classes of this split; their accuracy on "
            "it says little."
        )
    elif seen is None:
        print(
            "Note: it is not known which classes these weights were trained on, as of any file of weights "
            "on its own; if on classes of this "
            "split, their accuracy on it says little."
        )
    about = {
        "weights": name or os.path.abspath(weights),
        "classes_trained_on": seen,
        "environment": assembly.environment(device),
        "settings": settings.as_dict(),
    }
    if asked["analyse"]:
        report = _analyse(learner, settings, parts, rule, part, about, asked["analyse"])
    else:
        report = _score(learner, settings, parts, rule, part, about)
    if asked["json"]:
        write_json(asked["json"], report)


def _refuse_other_network(given, trained):
    """UserError if the settings that are given are of another network than the one that was trained; the
    shapes of weights do not tell all. Training may go on with images of another size
    (`training.start_weights`), but testing with them says nothing of what was trained."""
    for name in ("n_way", "architecture", "width", "image_size"):
        if given.get(name, getattr(trained, name)) != getattr(trained, name):
            raise UserError(
                f"{flag(name)} is {given[name]}, but these weights are of a network with "
                f"{getattr(trained, name)}: leave it out."
            )


def _evaluation_options(arguments):
    """The command line of eval.py: (what is asked for, settings that are given), two dicts."""
    parser = CommandLine(
        prog="eval.py",
        description="Evaluate trained weights. Settings that are not given are those of the run the weights "
        "come from, or the defaults below for a file on its own.",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="run folder, checkpoint folder, .pdparams, or the competition's weights",
    )
    parser.add_argument(
        "--pretrained",
        metavar="NAME",
        help="instead of --weights: weights that come with the library, such as 5way-1shot",
    )
    parser.add_argument(
        "--split",
        dest="part",
        choices=("train", "val", "test"),
        default="test",
        help="classes to draw episodes from (default test)",
    )
    parser.add_argument(
        "--analyse",
        metavar="FOLDER",
        help="instead: a table of what one accuracy leaves out (batch statistics, inner steps and "
        "rates, classes of one alphabet, confusions); FOLDER gets it as JSON, and pictures",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the result to this file")
    parser.add_settings(_EVALUATED, _EVAL_OPTIONS)
    given = parser.parse(arguments)
    asked = {name: given.pop(name) for name in ("weights", "pretrained", "part", "json", "analyse")}
    if bool(asked["weights"]) == bool(asked["pretrained"]):
        raise UserError("Give either --weights or --pretrained, and not an empty one.")
    folder = asked["analyse"]
    if folder is not None and (not folder or os.path.exists(folder) and not os.path.isdir(folder)):
        raise UserError(f"--analyse is {folder!r}, which is not a folder; name one.")
    if folder:
        check_target(os.path.join(folder, ANALYSIS), "--analyse", may_make_folder=True)
    if asked["json"] is not None:
        check_target(asked["json"], "--json")
    return asked, given


def _score(learner, settings, parts, rule, part, about):
    """Print the accuracy on a part of the split; returns the report of it."""
    from ..engine.assembly import describe, evaluation_episodes
    from ..engine.evaluation import evaluate
    from ..report.log import evaluation_table

    result = evaluate(
        learner, evaluation_episodes(settings, parts[part]), settings.test_episodes, settings.steps_at_test
    )
    report = {"evaluation": describe(result, settings, parts[part], rule, part), **about}
    print(evaluation_table(report["evaluation"]))
    return report


def _analyse(learner, settings, parts, rule, part, about, folder):
    """As `_score`, of an analysis, which is also written, with pictures, into a folder."""
    from ..engine.analysis import analyse, analysis_table, write_analysis

    analysis, predictions = analyse(
        learner, settings, parts[part], parts["val"], announce=lambda line: print(line, file=sys.stderr)
    )
    report = {
        "analysis": {"dataset": parts[part].name, "split_rule": rule, "split": part, **analysis},
        **about,
    }
    print(analysis_table(analysis))
    write_analysis(folder, report, predictions)
    print(f"Pictures and JSON: {folder}")
    return report

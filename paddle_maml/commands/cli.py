"""The commands: each parses, prepares, and imports what does the work.

Whatever imports Paddle is imported then: after `prepare`, and not for a help text or a mistyped option.
"""

from __future__ import annotations

import os
import shlex
import sys

from ..engine.device import import_paddle
from ..engine.presets import PRESETS
from ..engine.settings import flag, nearest, settings_from_preset
from ..errors import UserError
from ..files import check_target, write_whole
from ..report.tables import ANALYSIS, evaluation_table
from .command_line import CommandLine
from .running import run_command


def main_train(arguments: list[str] | None = None) -> int:
    """train.py: train and report.

    Args:
        arguments: the command line without the program's name; by default the process's.
    Returns:
        The exit status: 0, 2 for a failure that the user can mend, 130 after SIGINT or SIGTERM.
    """
    return run_command(_train, sys.argv[1:] if arguments is None else arguments)


def main_eval(arguments: list[str] | None = None) -> int:
    """eval.py: evaluate weights and report; arguments and exit status as `main_train`."""
    return run_command(_evaluate, sys.argv[1:] if arguments is None else arguments)


def main(arguments: list[str] | None = None) -> int:
    """python -m paddle_maml: the smaller commands; arguments and exit status as `main_train`."""
    return run_command(_verb, sys.argv[1:] if arguments is None else arguments)


# ---- train.py and eval.py ----


def _program(script):
    """The name that the command was called by: that of an installed command, or the script's."""
    name = os.path.basename(sys.argv[0])
    return name if name.startswith("paddle-maml") else script


def _train(arguments):
    parser = CommandLine(
        prog=_program("train.py"), description="Train MAML on Omniglot. Presets: " + ", ".join(PRESETS) + "."
    )
    parser.add_settings()
    given = parser.parse(arguments)
    settings_from_preset(**given)  # what is wrong with them is said at once
    import_paddle()
    from .train import run

    return run(given)


# The settings that matter to an evaluation, and the options that are named differently there.
_EVALUATED = """
    dataset data_dir split_rule split_seed preprocessing n_way k_shot learner lstm_hidden head network hidden
    batch_norm architecture width image_size in_channels inner_lr inner_optimizer adapted test_inner_steps
    test_inner_lr_factor test_inner_batch test_episodes test_k_query test_within_alphabet seed device chunk
""".split()
_EVAL_OPTIONS = {
    "test_episodes": ("--episodes", "episodes, numbered from 0: always the same ones for a seed"),
    "test_k_query": ("--k-query", "query images of each class"),
    "test_inner_steps": (
        "--inner-steps",
        "gradient steps on the support set; default: those of the run's tests",
    ),
    "test_inner_lr_factor": ("--inner-lr-factor", "inner rates, as a multiple of the run's"),
    "test_within_alphabet": ("--within-alphabet", "the classes of an episode are of one alphabet"),
    "seed": ("--seed", "decides the episodes"),
}


def _evaluate(arguments):
    parser = CommandLine(
        prog=_program("eval.py"),
        description="Evaluate trained weights on episodes, or classify your own images with them. Settings "
        "that are not given are those of the run the weights come from, or the defaults below for a file on "
        "its own.",
    )
    _add_weights(parser.group("weights"))
    own = _add_own_images(parser.group("your own images"))
    text = "classes to draw episodes from (default test); all: as of a folder that training has not seen"
    parts = ("train", "val", "test", "all")
    parser.group("data").add_argument("--split", dest="part", choices=parts, help=text)
    for name in ("task", "learner", "training"):
        parser.group(name)
    _add_output(parser.group("output"))
    parser.add_settings(_EVALUATED, _EVAL_OPTIONS)
    given = parser.parse(arguments)
    asked = {name: given.pop(name) for name in list(given) if name not in _EVALUATED}
    _require_one(asked["pretrained"], *(asked["weights"] or [None]))
    if asked["ensemble"] or len(asked["weights"] or []) > 1:
        for name in ("pretrained", "analyse", "time", *own):
            if asked[name]:
                raise UserError(f"--{name} is for one network, and no ensemble: leave it out.")
    if any(asked[name] is not None for name in own):
        return _classify(asked, given)
    if asked["predictions"] is not None:
        raise UserError("--predictions is for your own images: give --support and --query too.")
    folder = asked["analyse"]
    if folder in ("", "-"):
        raise UserError(f"--analyse is {folder!r}, which is not a folder; name one.")
    if folder and asked["part"] == "all":
        raise UserError("--split is all, but --analyse compares with validation classes: leave it out.")
    for option in ("statistics", "time") if folder else ():
        if asked[option]:
            raise UserError(f"--{option} says nothing to --analyse: leave one of them out.")
    if folder:
        check_target(os.path.join(folder, ANALYSIS), "--analyse", may_make_folder=True)
    if asked["json"] is not None:
        check_target(asked["json"], "--json")
    import_paddle()
    from .evaluate import run

    if asked["statistics"]:
        given["test_statistics"] = asked["statistics"]
    command = shlex.join(["python", "eval.py", *arguments])
    run({**asked, "part": asked["part"] or "test", "command": command}, given)


def _add_weights(group):
    add = group.add_argument
    text = (
        "run folder, checkpoint folder, .pdparams, or the competition's weights; several are an ensemble: "
        "each adapts by itself, and their probabilities are averaged"
    )
    add("--weights", metavar="PATH", nargs="+", help=text)
    text = "of a run that kept several (--keep-best) the weights of all its best validations together"
    add("--ensemble", action="store_true", help=text)
    text = "instead of --weights: weights that come with the library, such as 5way-1shot"
    add("--pretrained", metavar="NAME", help=text)
    text = (
        "whose statistics batch norm uses: query, those of the query set, as published (default for "
        "episodes, unless the run tests otherwise); support, of the support set (default for your own "
        "images: an answer then does not depend on the others); one, of the support set and the one query "
        "image, for episodes; population, of training images (default of learners that embed)"
    )
    add("--statistics", choices=("query", "support", "one", "population"), help=text)


def _add_own_images(group):
    """The options for the user's own images; returns their names."""
    add = group.add_argument
    text = "folder that holds a folder of images (PNG, JPEG, BMP, WebP) for each class, named by its label"
    add("--support", metavar="DIR", help=text)
    text = "images to classify: a folder of images, one of such folders named by label, or an image"
    add("--query", metavar="DIR", help=text)
    text = (
        "auto: light ink on dark paper is found and made dark on light, as in training; dark: images are "
        "taken as they are; light: all are inverted (default auto)"
    )
    add("--ink", choices=("auto", "dark", "light"), help=text)
    return "support", "query", "ink"


def _add_output(group):
    add = group.add_argument
    text = (
        "instead: a table of what one accuracy leaves out (batch statistics, inner steps and rates, classes "
        "of one alphabet, confusions); FOLDER gets it as JSON, and pictures"
    )
    add("--analyse", metavar="FOLDER", help=text)
    text = "also measure how long a task and a query image take, when the machine has nothing else to do"
    add("--time", action="store_true", default=None, help=text)
    add("--json", metavar="PATH", help="also write the result to this file")
    text = "write the answers for your own images to this file, PATH.csv or PATH.json"
    add("--predictions", metavar="PATH", help=text)


# What says nothing to the user's own images.
_OF_EPISODES = """
    dataset data_dir split_rule split_seed k_shot test_episodes test_k_query test_within_alphabet seed
""".split()


def _classify(asked, given):
    for name in ("support", "query"):
        if not asked[name]:
            raise UserError(f"--{name} is missing: --support and --query belong together.")
    useless = [f"--{name}" for name in ("analyse", "time", "json") if asked[name] is not None]
    useless += ["--split"] if asked["part"] else []
    useless += [_EVAL_OPTIONS.get(name, (flag(name),))[0] for name in _OF_EPISODES if name in given]
    if useless:
        raise UserError(f"{useless[0]} says nothing to your own images (--support, --query): leave it out.")
    target = asked["predictions"]
    if target is not None:
        if not target.endswith((".csv", ".json")):
            raise UserError(f"--predictions is {target!r}, but must end in .csv or .json.")
        check_target(target, "--predictions")
    import_paddle()
    from .classify import run

    run({**asked, "weights": (asked["weights"] or [None])[0]}, given)


# ---- python -m paddle_maml ----


def _verb(arguments):
    name = next(iter(arguments), "--help")
    if name in VERBS:
        parser = CommandLine(prog=f"python -m paddle_maml {name}", description=VERBS[name].__doc__)
        return VERBS[name](parser, arguments[1:])
    if name not in ("-h", "--help"):
        raise UserError(f"There is no command {name!r}: {nearest(name, VERBS)}")
    print("usage: python -m paddle_maml COMMAND ...; COMMAND --help tells more\n")
    for name, verb in VERBS.items():
        print(f"  {name:11s} {verb.__doc__}")


def _data(parser, arguments):
    """Find, check and decode Omniglot, and print its digests."""
    parser.add_settings(["data_dir"])
    data_dir = parser.parse(arguments).get("data_dir")
    import_paddle()
    from ..data.omniglot import FINISHED_DIGESTS, digest, load_omniglot

    for rule, expected in FINISHED_DIGESTS.items():
        found = digest(load_omniglot(data_dir, rule).images)
        print(f"{rule}: {found} ({'as published' if found == expected else 'NOT ' + expected})")


def _splits(parser, arguments):
    """Write the Omniglot splits as readable lists."""
    parser.add_argument("folder")
    folder = parser.parse(arguments)["folder"]
    import_paddle()
    from ..data.splits import OMNIGLOT_RULES, format_split

    for rule in OMNIGLOT_RULES:
        write_whole(os.path.join(folder, f"{rule}.txt"), format_split(rule).encode("utf-8"))


def _results(parser, arguments):
    """Keep what shows how a run went, and tabulate it."""
    what = (
        "keep: copy report, log and curve of the run in the first folder to the second; table: print a line "
        "for each folder, or file that eval.py wrote with --json; learners: print a line for each learner "
        "that reports, cards or files of eval.py --json tell of; average: make the mean of the weights of "
        "runs with the same start, or of those that one run kept, in the last folder"
    )
    parser.add_argument("what", choices=("keep", "table", "learners", "average"), help=what)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    text = "of learners: also draw accuracy against the time to adapt"
    parser.add_argument("--picture", metavar="PNG", help=text)
    given = parser.parse(arguments)
    if given["picture"] is not None:
        if given["what"] != "learners":
            raise UserError(f"--picture says nothing to {given['what']}: leave it out.")
        check_target(given["picture"], "--picture")
    *runs, folder = given["folders"]
    if given["what"] == "average":
        import_paddle()
        from ..engine.averaging import average

        average(runs, folder)
        return
    from ..engine.comparison import table as table_of_learners
    from ..engine.results import keep, table

    if given["what"] == "learners":
        print(table_of_learners(given["folders"], given["picture"]))
    elif given["what"] == "table":
        print(table(given["folders"]))
    elif len(given["folders"]) != 2:
        raise UserError(f"keep takes two folders, RUN and FOLDER, not {len(given['folders'])}.")
    else:
        keep(*given["folders"])


def _pretrained(parser, arguments):
    """Put a finished run's best weights, with a card, beside those of the library; complete a card."""
    what = (
        "add RUN NAME: the best weights of the run in that folder, and a card; measure NAME: the card gets "
        "the accuracy with the batch statistics of the support set"
    )
    parser.add_argument("what", choices=("add", "measure"), help=what)
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as 5way-1shot")
    given = parser.parse(arguments)
    what, names = given["what"], given["names"]
    wanted = {"add": 2, "measure": 1}[what]
    if len(names) != wanted:
        raise UserError(f"pretrained {what} takes {wanted} names, not {len(names)}: see --help.")
    import_paddle()
    from ..engine.results import SUPPORT_TEST
    from ..pretrained import add, measure

    if what == "add":
        print(f"Written: {add(*names)} and its card.")
    else:
        print(evaluation_table(measure(*names)[SUPPORT_TEST]))


def _draw(parser, arguments):
    """Serve a page to draw characters on, which says what a new one is."""
    group = parser.group("weights")
    text = "weights that come with the library (default 5way-1shot)"
    group.add_argument("--pretrained", metavar="NAME", help=text)
    text = "instead: run folder, checkpoint folder or .pdparams"
    group.add_argument("--weights", metavar="PATH", help=text)
    group = parser.group("server")
    text = "name or address to listen at; 0.0.0.0 is for every machine of the network (default 127.0.0.1)"
    group.add_argument("--host", default="127.0.0.1", help=text)
    text = "port to listen at; 0 takes any (default 7860)"
    group.add_argument("--port", type=_port, default=7860, help=text)
    for name in ("task", "learner", "training"):
        parser.group(name)
    parser.add_settings([name for name in _EVALUATED if name not in _OF_EPISODES], _EVAL_OPTIONS)
    given = parser.parse(arguments)
    asked = {name: given.pop(name) for name in ("pretrained", "weights", "host", "port")}
    if asked["weights"] is None and asked["pretrained"] is None:
        asked["pretrained"] = "5way-1shot"
    _require_one(asked["pretrained"], asked["weights"])
    import_paddle()
    from .draw import run

    run(asked, given)


def _require_one(pretrained, *weights):
    """UserError unless either shipped weights or a run's are named."""
    if "" in (pretrained, *weights):
        raise UserError(f"--{'pretrained' if pretrained == '' else 'weights'} is empty: name weights.")
    if pretrained is None and weights[0] is None:
        raise UserError("No weights are named: give --pretrained NAME or --weights PATH.")
    if pretrained is not None and weights[0] is not None:
        raise UserError(f"Both --pretrained {pretrained} and --weights {weights[0]} are named: give one.")


def _port(text):
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 16):
        raise UserError(f"--port is {text!r}, but must be a whole number from 0 to 65535.")
    return int(text)


def _episode(parser, arguments):
    """Draw a test episode and the answers of weights to a PNG file; by default 2 query images a class."""
    add = parser.add_argument
    add("--pretrained", metavar="NAME", help="weights that come with the library, such as 5way-1shot")
    add("--weights", metavar="PATH", help="instead: run folder, checkpoint folder, or .pdparams")
    add("--number", type=int, default=0, help="of the episode (default 0)")
    add("--output", metavar="PNG", required=True, help="the picture")
    parser.add_settings(["dataset", "data_dir", "n_way", "k_shot", "test_k_query", "seed"], _EVAL_OPTIONS)
    given = parser.parse(arguments)
    pretrained, weights, number, output = (
        given.pop(name) for name in ("pretrained", "weights", "number", "output")
    )
    _require_one(pretrained, weights)
    given.setdefault("test_k_query", 2)
    if not 0 <= number < 2**31:
        raise UserError(f"--number is {number}, but must be 0 to {2**31 - 1}.")
    check_target(output, "--output")
    import_paddle()
    from .episode import run

    run(pretrained, weights, number, output, given)


def _interchange(parser, arguments):
    """Compare frameworks on the same episodes and weights: export, verify, convert, table."""
    from .interchange import run

    return run(arguments)


VERBS = {
    "data": _data,
    "splits": _splits,
    "results": _results,
    "pretrained": _pretrained,
    "draw": _draw,
    "episode": _episode,
    "interchange": _interchange,
}

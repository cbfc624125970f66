"""The commands: each parses, prepares, and imports what does the work.

Whatever imports Paddle is imported then: after `prepare`, and not for a help text or a mistyped option.
"""

from __future__ import annotations

import os
import sys

from ..engine.device import import_paddle
from ..engine.presets import PRESETS
from ..engine.settings import nearest, settings_from_preset
from ..errors import UserError
from ..files import check_target, write_whole
from ..report.tables import ANALYSIS
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


def _train(arguments):
    parser = CommandLine(
        prog="train.py", description="Train MAML on Omniglot. Presets: " + ", ".join(PRESETS) + "."
    )
    parser.add_settings()
    given = parser.parse(arguments)
    settings_from_preset(**given)  # what is wrong with them is said at once
    import_paddle()
    from .train import run

    return run(given)


# The settings that matter to an evaluation, and the options that are named differently there.
_EVALUATED = """
    dataset data_dir split_rule split_seed preprocessing n_way k_shot learner network hidden batch_norm
    architecture width image_size in_channels inner_lr head adapted test_inner_steps test_episodes
    test_k_query seed device chunk
""".split()
_EVAL_OPTIONS = {
    "test_episodes": ("--episodes", "episodes, numbered from 0: always the same ones for a seed"),
    "test_k_query": ("--k-query", "query images of each class"),
    "test_inner_steps": (
        "--inner-steps",
        "gradient steps on the support set; default: those of the run's tests",
    ),
    "seed": ("--seed", "decides the episodes"),
}


# What is asked of an evaluation beside settings.
_ASKED = ("weights", "pretrained", "part", "json", "analyse", "statistics", "time")


def _evaluate(arguments):
    parser = CommandLine(
        prog="eval.py",
        description="Evaluate trained weights. Settings that are not given are those of the run the weights "
        "come from, or the defaults below for a file on its own.",
    )
    add = parser.add_argument
    text = "run folder, checkpoint folder, .pdparams, or the competition's weights"
    add("--weights", metavar="PATH", help=text)
    text = "instead of --weights: weights that come with the library, such as 5way-1shot"
    add("--pretrained", metavar="NAME", help=text)
    text = "classes to draw episodes from (default test); all: as of a folder that training has not seen"
    add("--split", dest="part", choices=("train", "val", "test", "all"), default="test", help=text)
    text = (
        "instead: a table of what one accuracy leaves out (batch statistics, inner steps and rates, classes "
        "of one alphabet, confusions); FOLDER gets it as JSON, and pictures"
    )
    add("--analyse", metavar="FOLDER", help=text)
    text = (
        "what batch norm knows in answering: query, all query images together; support, or one: the support "
        "set, or with it the one query image; population, training's mean; default: the learner's own"
    )
    add("--statistics", choices=("query", "support", "one", "population"), help=text)
    text = "also measure how long a task and a query image take, when the machine has nothing else to do"
    add("--time", action="store_true", help=text)
    add("--json", metavar="PATH", help="also write the result to this file")
    parser.add_settings(_EVALUATED, _EVAL_OPTIONS)
    given = parser.parse(arguments)
    asked = {name: given.pop(name) for name in _ASKED}
    if bool(asked["weights"]) == bool(asked["pretrained"]):
        raise UserError("Give either --weights or --pretrained, and not an empty one.")
    folder = asked["analyse"]
    if folder == "":
        raise UserError("--analyse is '', which is not a folder; name one.")
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

    run(asked, given)


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
        "for each folder; learners: print a line for each learner that reports, cards or files of eval.py "
        "--json tell of"
    )
    parser.add_argument("what", choices=("keep", "table", "learners"), help=what)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    text = "of learners: also draw accuracy against the time to adapt"
    parser.add_argument("--picture", metavar="PNG", help=text)
    given = parser.parse(arguments)
    if given["picture"] is not None:
        if given["what"] != "learners":
            raise UserError(f"--picture says nothing to {given['what']}: leave it out.")
        check_target(given["picture"], "--picture")
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
    """Put the best weights of a finished run beside the others that come with the library, with a card."""
    parser.add_argument("what", choices=("add",))
    parser.add_argument("run", help="run folder")
    parser.add_argument("name", help="such as 5way-1shot")
    given = parser.parse(arguments)
    import_paddle()
    from ..pretrained import add

    print(f"Written: {add(given['run'], given['name'])} and its card.")


VERBS = {"data": _data, "splits": _splits, "results": _results, "pretrained": _pretrained}

import sys

from ..commands.cli import run_command
from ..engine.settings import CommandLine
from . import FOLDER, add


def _add(arguments):
    parser = CommandLine(
        prog="python -m paddle_maml.pretrained",
        description="Put the best weights of a finished run beside the others that come "
        "with the library, with a card.",
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("name", help="such as 5way-1shot")
    given = parser.parse(arguments)
    add(given["run"], given["name"])
    print(f"Written: {FOLDER / given['name']}.pdparams and its card.")


sys.exit(run_command(_add, sys.argv[1:]))

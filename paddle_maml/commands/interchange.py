"""python -m paddle_maml interchange: the same problem for every framework (docs/interchange.md)."""

from __future__ import annotations

from ..engine.device import import_paddle
from ..engine.settings import nearest, settings_from_preset
from ..errors import UserError
from ..files import check_target
from .command_line import CommandLine, list_of

# The settings that an export is made from.
_EXPORTED = """
    preset dataset data_dir split_rule preprocessing rotations distortions n_way k_shot k_query architecture
    width image_size inner_steps inner_lr test_inner_steps meta_batch iterations meta_lr meta_lr_schedule
    test_episodes test_k_query seed device
""".split()
_OPTIONS = {
    "iterations": ("--iterations", "meta-iterations of the export (default here 10)"),
    "test_episodes": ("--episodes", "test episodes of the export (default here 100)"),
}
_DEFAULTS = {"iterations": 10, "test_episodes": 100}
DIFFERS = 1  # the exit status where two traces part


def run(arguments: list[str]) -> int | None:
    """Run one of the verbs; returns the exit status."""
    name = next(iter(arguments), "--help")
    if name in VERBS:
        verb = VERBS[name]
        parser = CommandLine(prog=f"python -m paddle_maml interchange {name}", description=verb.__doc__)
        return verb(parser, arguments[1:])
    if name not in ("-h", "--help"):
        raise UserError(f"There is no command interchange {name!r}: {nearest(name, VERBS)}")
    print("usage: python -m paddle_maml interchange VERB ...; VERB --help tells more\n")
    for name, verb in VERBS.items():
        print(f"  {name:8s} {verb.__doc__}")
    return None


def _export(parser, arguments):
    """Write episodes, initial weights, settings and our own traces into a folder."""
    parser.add_settings(_EXPORTED, _OPTIONS)
    parser.add_argument("--output", metavar="FOLDER", required=True, help="the export; made if needed")
    parser.add_argument(
        "--orders", type=list_of((1, 2), int), default=[1, 2], help="of our traces (default 1,2)"
    )
    text = "of our traces (default float32,float64)"
    parser.add_argument(
        "--dtypes", type=list_of(("float32", "float64")), default=["float32", "float64"], help=text
    )
    given = parser.parse(arguments)
    folder, orders, dtypes = (given.pop(name) for name in ("output", "orders", "dtypes"))
    settings = settings_from_preset(**{**_DEFAULTS, **given})
    settings.refuse_without_effect(given)
    check_target(f"{folder}/interchange.json", "--output", may_make_folder=True)
    import_paddle()
    from ..interchange.export import export

    export(settings, orders, dtypes, folder)


def _verify(parser, arguments):
    """Hold another implementation's trace against ours; status 1 where they part."""
    parser.add_argument("export", metavar="DIR", help="an export")
    parser.add_argument("trace", metavar="TRACE", help="the .npz that a reader wrote")
    given = parser.parse(arguments)
    import_paddle()
    from ..interchange.format import read_expected, read_export, read_trace
    from ..interchange.verify import compare, report

    export = read_export(given["export"])
    trace = read_trace(given["trace"], export)
    expected = read_expected(given["export"], export, trace.about["order"], trace.about["dtype"])
    rows = compare(export, expected, trace)
    print(report(rows))
    return 0 if all(row.agrees for row in rows) else DIFFERS


def _table(parser, arguments):
    """Tabulate the traces that exports have in traces/, and ours: a line for each reader, in Markdown."""
    parser.add_argument("exports", nargs="+", metavar="DIR", help="an export")
    parser.add_argument("--picture", metavar="PNG", help="also draw the curves of training in float32")
    given = parser.parse(arguments)
    if given["picture"] is not None:
        check_target(given["picture"], "--picture")
    import_paddle()
    from ..interchange.comparison import draw, table

    print(table(given["exports"]))
    if given["picture"]:
        draw(given["exports"], given["picture"])


def _convert(parser, arguments):
    """Write weights in another framework's layout."""
    from ..interchange.layouts import LAYOUTS, convert

    parser.add_argument("source", metavar="SOURCE", help=".pdparams, .safetensors or .npz")
    parser.add_argument("target", metavar="TARGET", help="the same; .pdparams for the layout paddle alone")
    parser.add_argument(
        "--from", dest="of", choices=tuple(LAYOUTS), default="paddle", help="(default paddle)"
    )
    parser.add_argument("--to", choices=tuple(LAYOUTS), default="pytorch", help="(default pytorch)")
    given = parser.parse(arguments)
    check_target(given["target"], "TARGET")
    if given["to"] == "paddle":
        import_paddle()
    convert(given["source"], given["target"], given["of"], given["to"])


VERBS = {"export": _export, "verify": _verify, "convert": _convert, "table": _table}

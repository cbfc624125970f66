"""The command line made from the settings: one option for each, mistakes told in one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from typing import Any, Callable, NoReturn, Sequence

from ..engine.settings import NOTHING, Settings, flag, group_of, kind_of, nearest, what_is_wrong
from ..errors import UserError


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises UserError instead of leaving the program, and knows the nearest option
    to a mistyped one."""

    def __init__(self, **options: Any):
        self._groups = {}
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=120),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(message + ("" if message.endswith((".", "?")) else "."))

    def parse(self, arguments: list[str]) -> dict:
        """Dict of the options that were given, and only those."""
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown option {unknown[0]}: {nearest(unknown[0].split('=')[0], options)}")
        return vars(known)

    def group(self, name: str) -> Any:
        """The group of options of that name in the help text; groups stand in the order in which they are
        first named."""
        if name not in self._groups:
            self._groups[name] = self.add_argument_group(name)
        return self._groups[name]

    def add_settings(self, names: list[str] | None = None, other: dict | None = None) -> None:
        """One option for each field of `Settings`.

        Args:
            names: the fields to offer; default all.
            other: dict from field to (option, help), where others than `flag(name)` and the field's own are
                wanted.
        """
        for field in dataclasses.fields(Settings):
            if names is not None and field.name not in names:
                continue
            kind, check = kind_of(field), field.metadata["check"]
            option, help = (other or {}).get(field.name, (flag(field.name), field.metadata["help"]))
            unit, choices = field.metadata["unit"], getattr(check, "choices", None)
            details = [f"default {field.default}"] if field.default is not None else []
            details = ([f"unit: {unit}"] if unit else []) + details
            # "%" has a meaning in argparse's help texts.
            text = (help + (f" ({'; '.join(details)})" if details else "")).replace("%", "%%")
            if kind is bool:
                more = {"action": argparse.BooleanOptionalAction}
            else:
                metavar = "{" + ",".join(map(str, choices)) + "}" if choices else kind.__name__.upper()
                more = {"type": _reader(option, field), "metavar": metavar}
            group = self if field.name == "preset" else self.group(group_of(field.name))
            group.add_argument(option, dest=field.name, default=argparse.SUPPRESS, help=text, **more)


def _reader(option, field):
    """The function from an option's text to its value; it names the option as it was typed where the value is
    wrong."""
    kind = kind_of(field)

    def read(text):
        if text == NOTHING and field.default is None:
            return None
        if kind is not str and not re.fullmatch("[-+.0-9A-Za-z]+", text):
            raise ValueError  # Python takes digits of every script, underscores and blanks
        value = os.path.expanduser(text) if field.metadata["unit"].startswith("path") else kind(text)
        wrong = what_is_wrong(field, value)
        if wrong:
            raise UserError(f"{option} is {value!r}, but {wrong}.")
        return value

    read.__name__ = kind.__name__  # argparse names it in its message
    return read


def list_of(choices: Sequence, kind: Callable[[str], Any] = str) -> Callable[[str], list]:
    """For an option's `type`: values with commas between them, each one of the choices, none twice."""

    def read(text):
        values = [kind(part) for part in text.split(",")]
        for value in values:
            if value not in choices:
                raise argparse.ArgumentTypeError(f"{value} is none of " + ", ".join(map(str, choices)))
        return list(dict.fromkeys(values))

    read.__name__ = "list"  # argparse names it in its message
    return read

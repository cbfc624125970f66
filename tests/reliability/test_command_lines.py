"""Generated command lines with one mistake each: one sentence, before anything is done."""

import dataclasses
import random

import pytest
from trials import assert_refused, count, listing, some

from paddle_maml.commands import cli
from paddle_maml.engine.settings import Settings, flag, kind_of

# What no whole number, no number and no choice is; blanks and other scripts too.
NO_NUMBER = [
    "",
    " ",
    "x",
    "1x",
    "0x10",
    "1e",
    "--",
    "٣",
    "１",
    "1_0",
    " 5",
    "5 ",
    "1,5",
    "½",
    "1 2",
    "\t1",
    "None",
]
NO_RATE = [*NO_NUMBER, "nan", "inf", "-inf", "0", "-1", "1e-320", "1e400", "-0.0"]
NO_COUNT = [*NO_NUMBER, "1.5", "1e3", "-1", "nan", "inf", "9" * 30, "9" * 5000]
NO_CHOICE = ["", " ", "nothing-like-it", "POOL", "1.0", "auto ", "cpu0", "gpu:x", "-", "\0"]


def wrong_values(field):
    """Values that a setting does not take."""
    kind, check = kind_of(field), field.metadata["check"]
    if kind is int and hasattr(check, "choices"):
        return NO_COUNT
    if kind is int:
        return NO_COUNT
    if kind is float:
        return NO_RATE
    if kind is bool:
        return []
    if hasattr(check, "choices") or field.name in ("preset", "network", "hidden"):
        return NO_CHOICE
    return [""]


def mistyped(option, draw):
    """The option with two letters swapped, one missing or one too many."""
    place = draw.randrange(3, len(option))
    return draw.choice(
        [option[:place] + option[place + 1 :], option[:place] + "q" + option[place:], option[: place - 1]]
    )


def bad_lines(number):
    """(command, arguments), the same ones each time."""
    draw = random.Random(19)
    fields = [field for field in dataclasses.fields(Settings) if field.name not in ("resume", "output")]
    options = [flag(field.name) for field in dataclasses.fields(Settings)]
    known = {*options, *(option.replace("--", "--no-", 1) for option in options)}
    while number:
        field, good = draw.choice(fields), ["--preset", "quickstart"]
        kind = draw.choice(
            ["value", "value", "value", "value", "mistyped", "missing", "surplus", "eval", "verb"]
        )
        option = flag(field.name)
        wrong = wrong_values(field)
        if kind == "value" and wrong:
            value = draw.choice(wrong)
            line = [*(good if field.name != "preset" else []), f"{option}={value}"]
        elif kind == "mistyped":
            option = mistyped(option, draw)
            if option in known or option in ("--", "-"):
                continue
            line = [*good, option + "=1"]
        elif kind == "missing" and kind_of(field) is not bool:
            line = [*good, option]
        elif kind == "surplus":
            line = [
                *good,
                draw.choice(["surplus", "--", "-", "-x", "--weights=x", "ü", "\udcff", "--resume=1"]),
            ]
            line += ["more"] if line[-1] == "--" else []
        elif kind == "eval":
            number -= 1
            yield (
                "main_eval",
                draw.choice(
                    [
                        [],
                        ["--weights"],
                        ["--weights="],
                        ["--weights=x", "--pretrained=y"],
                        ["--weights", "/nosuch/\udcff"],
                        ["--weights", "/dev/zero"],
                        ["--weights", "/dev/null", "--json=-"],
                        ["--pretrained", "5way-1shoot"],
                        ["--pretrained", "../5way-1shot"],
                        ["--pretrained=5way-1shot", "--split=all"],
                        ["--pretrained=5way-1shot", "--analyse="],
                        ["--pretrained=5way-1shot", "--analyse=-"],
                        ["--pretrained=5way-1shot", "--n-way=20"],
                        ["--pretrained=5way-1shot", "--episodes=1"],
                        ["--pretrained=5way-1shot", "--episodes=٣"],
                        ["--pretrained=5way-1shot", "--meta-lr=1"],
                        ["--pretrained=5way-1shot", "--dataset=synthetic", "--data-dir=/nosuch"],
                    ]
                ),
            )
            continue
        elif kind == "verb":
            number -= 1
            yield (
                "main",
                draw.choice(
                    [
                        ["daat"],
                        [""],
                        ["-x"],
                        ["data", "--data-dir", "/nosuch"],
                        ["data", "more"],
                        ["splits"],
                        ["splits", "/dev/null/x"],
                        ["results"],
                        ["results", "table"],
                        ["results", "table", "/nosuch"],
                        ["results", "keep", "one"],
                        ["results", "keep", "/nosuch", ""],
                        ["pretrained", "add", "/nosuch", "x"],
                        ["pretrained", "add", "/nosuch", "../x"],
                        ["pretrained", "remove", "x", "y"],
                    ]
                ),
            )
            continue
        else:
            continue
        number -= 1
        yield "main_train", line


@pytest.mark.slow
def test_bad_command_lines(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for number, (command, line) in enumerate(bad_lines(some(300, 60))):
        main = getattr(cli, command)
        output = ["--output", "run"] if command == "main_train" and "more" not in line else []
        assert_refused(capfd, main, [*output, *line]), (number, line)
        assert listing(tmp_path) == {}, line
        count("generated bad command lines")


@pytest.mark.parametrize(
    "line, sentence",
    [
        (["--resume"], "holds no run to continue"),
        (["--resume", "--output", "typo"], "typo holds no run to continue"),
        (["--data-dir", "/nosuch"], "the characters are drawn"),
    ],
)
def test_what_would_do_nothing_or_something_else_is_refused(tmp_path, monkeypatch, capfd, line, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in assert_refused(capfd, cli.main_train, ["--preset", "quickstart", *line])
    assert listing(tmp_path) == {}

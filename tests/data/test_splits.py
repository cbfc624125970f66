"""The class splits: their sizes, their golden digests, and that the lists in data/ are what the rules
give."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_maml.data.omniglot import BACKGROUND, EVALUATION, class_names
from paddle_maml.data.splits import format_split, split_classes
from paddle_maml.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
SIZES = {
    "competition": (973, 325, 325),
    "vinyals": (1028, 172, 423),
    "lake": (792, 172, 659),
    "mamlpp": (1150, 50, 423),
}
# SHA-256 of the names of train, val and test, in order, joined with newlines.
GOLDEN = {
    "competition": "1d00f6e4b31ee62e9ff22369b4e03831564469a35d28a46e3477795ed8b8bf7e",
    "vinyals": "f688929dbac47bb510493d3bd74c1ec9c69b7bfb820ead1656bc23c1ab8a9ee8",
    "mamlpp": "763436f52e67f7fd33e36e9b909f37ff9adc3b146933b90bbeb5aad23f051b36",
    "lake": "95c005debd29249c9dcd6bc2516b75dfea7f72aef2ad1316a41b2906c88aa6aa",
}


@pytest.mark.parametrize("rule", SIZES)
def test_rule(rule):
    split = split_classes(class_names(), rule)
    names = [name for part in ("train", "val", "test") for name in split[part]]
    assert tuple(map(len, split.values())) == SIZES[rule]
    assert sorted(names) == class_names()
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == GOLDEN[rule]


@pytest.mark.parametrize("rule", SIZES)
def test_order_of_the_classes_does_not_matter(rule):
    assert split_classes(class_names()[::-1], rule) == split_classes(class_names(), rule)


def test_known_places():
    competition, vinyals = (
        split_classes(class_names(), "competition"),
        split_classes(class_names(), "vinyals"),
    )
    assert competition["train"][:2] == ["Gurmukhi/character23", "Malay_(Jawi_-_Arabic)/character29"]
    assert vinyals["test"][0] == "Gurmukhi/character42" and vinyals["test"][-1] == "ULOG/character26"


def test_lakes_parts_are_whole_alphabets_that_give_20_way_episodes():
    split = split_classes(class_names(), "lake")
    alphabets = {part: {} for part in split}
    for part, names in split.items():
        for name in names:
            alphabet = name.split("/")[0]
            alphabets[part][alphabet] = alphabets[part].get(alphabet, 0) + 1
    assert {part: len(found) for part, found in alphabets.items()} == {"train": 25, "val": 5, "test": 20}
    assert alphabets["test"] == EVALUATION and {**alphabets["train"], **alphabets["val"]} == BACKGROUND
    assert min(alphabets["test"].values()) == 20 < min(alphabets["val"].values())
    # Vinyals et al.'s validation classes are the same, so that the two may be compared.
    assert split["val"] == sorted(split_classes(class_names(), "vinyals")["val"])


@pytest.mark.parametrize("rule", SIZES)
def test_lists_in_data_are_what_the_rules_give(rule):
    text = (REPOSITORY / "data" / "splits" / f"{rule}.txt").read_text(encoding="utf-8")
    assert text == format_split(rule)
    names = [line for line in text.splitlines() if line and line[0] not in "#["]
    assert names == [name for part in split_classes(class_names(), rule).values() for name in part]


def test_lists_are_written_by_command(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "paddle_maml", "splits", str(tmp_path)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    for rule in SIZES:
        assert (tmp_path / f"{rule}.txt").read_bytes().decode() == format_split(rule)


@pytest.mark.parametrize("rule", SIZES)
def test_incomplete_or_foreign_classes_are_refused(rule):
    with pytest.raises(UserError, match="1 are missing.*ULOG/character26"):
        split_classes(class_names()[:-1], rule)
    with pytest.raises(UserError, match="1 are unknown.*Klingon/character01"):
        split_classes([*class_names(), "Klingon/character01"], rule)
    with pytest.raises(UserError, match="twice"):
        split_classes([*class_names(), "ULOG/character26"], rule)


def test_unknown_rule():
    with pytest.raises(UserError, match="finn"):
        split_classes(class_names(), "finn")


def test_synthetic_split_keeps_alphabets_whole():
    classes = [f"Synthetic_{i:02d}/character{j:02d}" for i in range(1, 16) for j in range(1, 5)]
    split = split_classes(classes[::-1], "synthetic")
    alphabets = {part: sorted({name.split("/")[0] for name in names}) for part, names in split.items()}
    assert [len(part) for part in alphabets.values()] == [9, 3, 3]
    assert sum(alphabets.values(), []) == sorted({name.split("/")[0] for name in classes})
    assert sum(split.values(), []) == classes
    with pytest.raises(UserError, match="at least 3 alphabets"):
        split_classes(classes[:8], "synthetic")

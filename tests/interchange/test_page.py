"""The READMEs' tables of frameworks have what docs/interchange.md has."""

from pathlib import Path

import pytest
from tiny_run import ROOT


def rows(text):
    """The lines of tables as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


@pytest.mark.parametrize(
    "readme, heading, own",
    [("README.md", "## Other frameworks", "this library"), ("README_cn.md", "## 与其他框架比较", "本库")],
)
def test_the_readmes_table_of_frameworks_is_that_of_the_page(readme, heading, own):
    page = rows(Path(ROOT, "docs", "interchange.md").read_text(encoding="utf-8"))
    head = next(row for row in page if row[0] == "framework")
    of_page = {row[0]: dict(zip(head, row)) for row in page if len(row) == len(head)}
    section = Path(ROOT, readme).read_text(encoding="utf-8").split(heading)[1]
    _, _, *lines = rows(section.split("\n## ")[0])
    names = ["PaddlePaddle 3.3.1" if line[0] == own else line[0] for line in lines]
    # The loop of 2021 has no second order.
    assert {*names, "framework", "---"} == {name for name in of_page if not name.startswith("the loop")}
    for name, (_, difference, seconds, memory, count) in zip(names, lines):
        expected = of_page[name]
        assert difference == expected["largest difference, float64, order 2"]
        assert (seconds, memory) == (expected["s, order 2"], expected["MiB, order 2"])
        reader = expected["reader (lines)"].split(" ")[0]
        assert count == ("" if name == names[0] else str(len(_lines_of(reader))))


def _lines_of(reader):
    return Path(ROOT, "docs", "readers", reader).read_text(encoding="utf-8").splitlines()

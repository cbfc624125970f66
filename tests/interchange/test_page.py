"""The READMEs' tables of frameworks have what docs/interchange.md has."""

import re
from pathlib import Path

import pytest
from tiny_run import ROOT


def table(page, corner):
    """The lines of the one table whose head begins with that cell: dicts from the cells of the head."""
    found = re.search(
        rf"^\| {corner} \|.*?(?=\n\n)", Path(ROOT, page).read_text(encoding="utf-8"), re.M | re.S
    )
    head, _, *lines = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in found.group().splitlines()
    ]
    return [dict(zip(head, line)) for line in lines]


@pytest.mark.parametrize(
    "readme, corner, own", [("README.md", "framework", "this library"), ("README_cn.md", "框架", "本库")]
)
def test_the_readmes_table_of_frameworks_is_that_of_the_page(readme, corner, own):
    # The loop of 2021 has no second order.
    of_page = [
        line
        for line in table("docs/interchange.md", "framework")
        if not line["framework"].startswith("the loop")
    ]
    expected = {}
    for line in of_page:
        reader = line["reader (lines)"].split(" ")[0]
        name, count = line["framework"], ""
        if reader == "paddle_maml":
            name = own
        else:
            count = str(len(Path(ROOT, "docs", "readers", reader).read_text(encoding="utf-8").splitlines()))
            assert line["reader (lines)"] == f"{reader} ({count})"
        figures = ("largest difference, float64, order 2", "s, order 2", "MiB, order 2")
        expected[name] = [*(line[figure] for figure in figures), count]
    cells = [list(line.values()) for line in table(readme, corner)]
    assert {name: others for name, *others in cells} == expected

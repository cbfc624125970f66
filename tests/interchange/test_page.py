"""README.md's table of frameworks has what docs/interchange.md has."""

from pathlib import Path

from tiny_run import ROOT


def rows(text):
    """The lines of tables as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_the_readmes_table_of_frameworks_is_that_of_the_page():
    page = rows(Path(ROOT, "docs", "interchange.md").read_text(encoding="utf-8"))
    head = next(row for row in page if row[0] == "framework")
    of_page = {row[0]: dict(zip(head, row)) for row in page if len(row) == len(head)}
    section = Path(ROOT, "README.md").read_text(encoding="utf-8").split("## Other frameworks")[1]
    _, _, own, *others = rows(section.split("\n## ")[0])
    assert own[0] == "this library" and len(others) > 5
    for name, difference, seconds, memory, reader in [["PaddlePaddle 3.3.1", *own[1:]], *others]:
        expected = of_page[name]
        assert difference == expected["largest difference, float64, order 2"]
        assert (seconds, memory) == (expected["s, order 2"], expected["MiB, order 2"])
        assert not reader or expected["reader (lines)"].endswith(f"({reader})")

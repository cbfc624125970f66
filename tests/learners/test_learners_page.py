"""The code of docs/learners.md is run as it stands, in the order of the page."""

import re
from pathlib import Path

import pytest
from tiny_run import ROOT

PAGE = Path(ROOT, "docs", "learners.md").read_text(encoding="utf-8")


def test_the_page_shows_what_its_code_prints(capsys):
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.S)
    assert len(blocks) >= 3
    names, shown = {}, ""
    for code, output in blocks:
        exec(compile(code, "docs/learners.md", "exec"), names)
        shown += output
    printed = capsys.readouterr().out
    assert len(shown.splitlines()) == len(printed.splitlines()) > 0, printed
    # Another processor rounds otherwise.
    number = r"-?\d+\.\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    ours, theirs = ([float(n) for n in re.findall(number, text)] for text in (printed, shown))
    assert ours == pytest.approx(theirs, abs=0.011), printed

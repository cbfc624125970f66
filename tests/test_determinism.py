"""docs/determinism.md names tests that there are."""

import re
from pathlib import Path

from tiny_run import ROOT

PAGE = Path(ROOT, "docs", "determinism.md").read_text(encoding="utf-8")


def test_every_line_names_tests_that_there_are():
    held, to_the_bit, equal = 0, *PAGE.split("## ")[1:3]
    for line in (to_the_bit + equal).splitlines():
        if not line.startswith("| ") or line.startswith(("| what", "| ---")):
            continue
        files = re.findall(r"\]\((\.\./tests/[^)]+)\)((?:[^\[|]|\[(?!test_))*)", line)
        assert files, line
        for path, names in files:
            code = Path(ROOT, "docs", path).read_text(encoding="utf-8")
            named = re.findall(r"`(test_\w+)`", names)
            assert named, line
            for name in named:
                assert f"\ndef {name}(" in code, f"{path} has no {name}"
                held += 1
    assert held > 15

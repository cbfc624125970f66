"""Makes the notebook of a Python file in the percent format: python docs/notebook.py docs/aistudio.py

A line "# %%" begins a cell of code, "# %% [markdown]" one of text, whose lines are comments; `tags="NAME"`
after it tags the cell. The notebook is plain JSON without outputs and identifiers, so that the same source
always gives the same file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

_MARK = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=\"(?P<tag>[\w-]+)\")?")


def notebook_of(source: str) -> dict:
    """The notebook, format 4.4, of a source; ValueError if something stands before the first cell."""
    cells, lines = [], []
    for line in source.splitlines():
        mark = _MARK.fullmatch(line)
        if mark:
            lines = []
            cells.append((mark, lines))
        elif cells:
            lines.append(line)
        elif line.strip():
            raise ValueError(f"{line!r} stands before the first cell.")
    return {
        "cells": [_cell(mark, lines) for mark, lines in cells],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def _cell(mark, lines):
    text = "\n".join(re.sub("^# ?", "", line) for line in lines) if mark["markdown"] else "\n".join(lines)
    cell = {
        "cell_type": "markdown" if mark["markdown"] else "code",
        "metadata": {"tags": [mark["tag"]]} if mark["tag"] else {},
        "source": text.strip().splitlines(keepends=True),
    }
    return cell if mark["markdown"] else {**cell, "execution_count": None, "outputs": []}


def notebook_file(source: Path) -> bytes:
    """The bytes of the .ipynb file of a source file."""
    notebook = notebook_of(source.read_text(encoding="utf-8"))
    return (json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode("utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".py"):
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    path.with_suffix(".ipynb").write_bytes(notebook_file(path))

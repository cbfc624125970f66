"""The code of docs/flat-images.md is run as it stands, on small files in MNIST's format."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mnist_files import write_digits
from tiny_run import ROOT

PAGE = Path(ROOT, "docs", "flat-images.md").read_text(encoding="utf-8")
DOWNLOAD = 'MNIST(mode="train")'


@pytest.mark.slow
def test_code_learns_to_tell_apart_digits_that_were_held_back(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    image_path, label_path, _, _ = write_digits(tmp_path)
    assert code.count(DOWNLOAD) == 1
    code = code.replace(DOWNLOAD, f"MNIST(image_path={image_path!r}, label_path={label_path!r})")
    code = code.replace("range(500)", "range(100)")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^100: loss [0-9.]+, accuracy [0-9.]+%$", result.stdout, re.M), result.stdout
    assert re.search(r"^a new task: [0-9.]+% of 15 images right$", result.stdout, re.M), result.stdout
    before, after = map(float, re.search(r"held-back digits: ([0-9.]+)%, ([0-9.]+)%", result.stdout).groups())
    assert before < 45 and after > 60, result.stdout  # chance is a third

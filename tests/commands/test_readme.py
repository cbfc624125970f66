"""Every command of the README and of the pages in docs is run, the long ones with fewer iterations and small
drawn data, and the Python code."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import drawings, write_folder
from tiny_run import ROOT

from paddle_maml.engine.presets import PRESETS

# The pages go on from runs of the README's commands and of training.md's.
README, *PAGES = (
    path.read_text(encoding="utf-8")
    for path in dict.fromkeys(
        [Path(ROOT, "README.md"), Path(ROOT, "docs", "training.md"), *sorted(Path(ROOT, "docs").glob("*.md"))]
    )
    if path.name != "own-images.md"  # test_own_images.py runs these, on pictures
)
COMMANDS = list(
    dict.fromkeys(
        line
        for block in re.findall(r"```bash\n(.*?)```", "".join([README, *PAGES]), re.S)
        for line in block.strip().splitlines()
    )
)
PYTHON = [
    code
    for text in (README, Path(ROOT, "docs", "use.md").read_text(encoding="utf-8"))
    for code in re.findall(r"```python\n(.*?)```", text, re.S)
]
# What the code prints, by what is in it.
PRINTED = {
    "task.export": "task.classes.txt",
    "stairs": "('stairs', 'stairs')",
    "task.predict": "probability",
    "": "Tensor",
}

# What makes a command short; the rest of it is run as it stands.
SMALL = (
    "--dataset synthetic --iterations 2 --meta-batch 2 --k-query 1 --val-episodes 2 --test-episodes 2 "
    "--distortions 0"
)
BENCHMARK = "--tasks 2 --repeat 1 --warmup 0 --width 4"
SHORTER = {
    "--support": "",
    "interchange export": "--iterations 2 --meta-batch 2 --k-query 1 --width 4 --episodes 4 --dtypes float64",
    "interchange verify": "",
    "interchange convert": "",
    "docs/readers/": "",
    "--start-from runs/": SMALL + " --width 4",
    # They start from weights of the full width.
    **{f"--preset {name}": SMALL for name, settings in PRESETS.items() if "start_from" in settings},
    "--preset sinusoid": "--iterations 4 --val-episodes 2 --test-episodes 4",
    "--preset mlp": SMALL,
    "--preset fine-tuning": SMALL.replace("--k-query 1 ", "") + " --width 4",
    "train.py": SMALL + " --width 4",
    "eval.py": "--episodes 4",
    "--scaling": BENCHMARK + " --k-query 1 --orders 1 --processes 1",
    "paddle_maml.benchmark": BENCHMARK + " --against competition",
    "paddle_maml data": "",
    "paddle_maml draw": "",
    "paddle_maml episode": "",
    "paddle_maml results": "",
    "paddle_maml.engine.plain_data": "",
}


# What a test run begins with; the others are marked as slow.
QUICK = ("python train.py --preset quickstart",)


def script_of(command):
    return next((name for name in SHORTER if name in command), None)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The repository without what runs left in it, so that commands may write where they say."""
    folder = tmp_path_factory.mktemp("clone") / "paddle_maml"
    left = shutil.ignore_patterns(".git", "cache", "*.zip", "__pycache__", ".pytest_cache", "venv", ".venv")
    shutil.copytree(
        ROOT, folder, ignore=lambda place, names: left(place, names) | ({"runs"} if place == ROOT else set())
    )
    # A user's own drawings.
    drawn = drawings()
    write_folder(folder / "characters" / "support", drawn[:, :1])
    write_folder(folder / "characters" / "query", drawn[:, 10:12])
    return folder


def test_the_readme_has_the_commands_that_matter():
    for needed in (
        "pip install -r requirements.txt",
        "train.py --preset quickstart",
        "eval.py --weights",
        "python -m pytest tests",
        "paddle_maml.benchmark",
    ):
        assert any(needed in command for command in COMMANDS), needed


def test_every_command_is_run_or_known():
    unknown = [command for command in COMMANDS if not script_of(command) and "pip install" not in command]
    assert not unknown


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=() if command in QUICK else pytest.mark.slow)
        for command in COMMANDS
        if script_of(command)
    ],
)
def test_command(clone, command, request):
    if "--pretrained" in command and "--support" not in command:
        request.getfixturevalue("omniglot")
    needs_omniglot = "paddle_maml data" in command or "competition_5way_5shot" in command
    if needs_omniglot:
        pytest.skip(
            "needs files of the user's own; what it calls is tested in test_omniglot.py and "
            "test_checkpoint.py"
        )
    if "runs/pytorch.npz" in command and importlib.util.find_spec("torch") is None:
        pytest.skip("needs PyTorch")
    if "paddle_maml draw" in command:
        pytest.skip("serves until it is interrupted; tested in tests/page/test_serving.py")
    if "--gpus" in command:
        pytest.skip("needs two GPUs; the launcher on a CPU is tested in test_parallel.py")
    arguments = shlex.split(command.split("#")[0])
    assert arguments[0] == "python"
    result = subprocess.run(
        [sys.executable, *arguments[1:], *SHORTER[script_of(command)].split()],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("code", PYTHON)
def test_python_code(clone, code):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert next(said for part, said in PRINTED.items() if part in code) in result.stdout


CHINESE = Path(ROOT, "README_cn.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "what, pattern",
    [
        ("code", r"```\w+\n.*?```"),
        ("links", r"\]\(([^)]+)\)"),
        ("names", r"(?<!`)`([^`\n]+)`(?!`)"),
        ("figures", r"(?<![\w.])\d+(?:[.,]\d+)*(?:e-\d+)?(?!\w)"),
    ],
)
def test_the_chinese_readme_has_the_same(what, pattern):
    """Sections may stand in another order."""
    english, chinese = (sorted(re.findall(pattern, text, re.S | re.A)) for text in (README, CHINESE))
    if what == "links":
        english.remove("README_cn.md"), chinese.remove("README.md")
    assert english == chinese and len(english) > 3

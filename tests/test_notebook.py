"""The notebook for AI Studio: the committed file is what its source gives, it leaves the Paddle that is there
alone, and all of it runs, with Jupyter and without."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_run import ROOT

from paddle_maml.engine.checkpoint import newest_checkpoint
from paddle_maml.errors import UserError
from paddle_maml.files import lock_folder
from paddle_maml.report.log import METRICS, read_metrics

DOCS = Path(ROOT, "docs")
NOTEBOOK = json.loads((DOCS / "aistudio.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]

TINY = (
    "--preset quickstart --width 4 --iterations 20 --val-every 10 --val-episodes 4 --test-episodes 4 "
    "--k-query 2 --inner-steps 1 --meta-batch 2 --checkpoint-every 10 --device cpu --processes 1"
).split()


def source(cell):
    return "".join(cell["source"])


def the_cell(text):
    """The one cell of code with a text in it."""
    (cell,) = [cell for cell in CODE if text in source(cell)]
    return cell


def run(arguments, cwd, status=0, **environment):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **environment}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        timeout=300,
        encoding="utf-8",
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the file ----


def test_the_notebook_is_what_its_source_gives(builder):
    assert (DOCS / "aistudio.ipynb").read_bytes() == builder.notebook_file(DOCS / "aistudio.py")


def test_the_command_writes_it(tmp_path):
    (tmp_path / "a.py").write_text(
        '# %% [markdown]\n# # Title\n#\n# Text\n\n# %% tags="x"\na = 1\n\n# %%\nb = 2\n'
    )
    run([str(DOCS / "notebook.py"), "a.py"], tmp_path)
    text, *code = json.loads((tmp_path / "a.ipynb").read_text())["cells"]
    assert source(text) == "# Title\n\nText"
    assert [(source(cell), cell["metadata"]) for cell in code] == [("a = 1", {"tags": ["x"]}), ("b = 2", {})]


def test_nothing_may_stand_before_the_first_cell(builder):
    with pytest.raises(ValueError, match="'a = 1' stands before the first cell"):
        builder.notebook_of("\na = 1\n# %%\n")


def test_it_is_a_notebook():
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(NOTEBOOK))


# ---- what it installs ----


@pytest.mark.parametrize(
    "there, pip, said",
    [
        ({}, ["numpy", "pillow", "paddlepaddle>=3.0"], ""),
        ({"numpy": "2.1.0", "pillow": "11.0.0"}, ["paddlepaddle>=3.0"], ""),
        ({"paddlepaddle": "3.3.1", "numpy": "2.1.0", "Pillow": "11.0.0"}, None, "paddlepaddle 3.3.1"),
        ({"paddlepaddle_gpu": "2.6.2", "numpy": "1.26.4", "pillow": "9.1.0"}, None, "paddlepaddle-gpu 2.6.2"),
        (
            {"paddlepaddle-gpu": "2.4.0", "numpy": "1.22.0", "pillow": "9.1.0"},
            None,
            "2.4.0，保持不变。\n注意",
        ),
        ({"paddlepaddle-xpu": "2.6.1", "numpy": "1.26.4", "pillow": "9.1.0"}, None, "paddlepaddle-xpu"),
        ({"paddlepaddle-gpu": "2.6.2"}, ["--no-deps", "numpy<2", "pillow"], "2.6.2"),
        ({"paddlepaddle-gpu": "3.3.1", "numpy": "2.1.0"}, ["--no-deps", "pillow"], "3.3.1"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_it_installs_what_is_missing_and_leaves_paddle_alone(tmp_path, there, pip, said):
    for name, version in there.items():
        place = tmp_path / f"{name}-{version}.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    asked = tmp_path / "asked.json"
    (tmp_path / "pip.py").write_text(
        f"import json, sys; json.dump(sys.argv[1:], open({str(asked)!r}, 'w'))\n"
    )
    # -S: without this environment's own packages.
    printed = run(["-S", "-c", source(the_cell("def missing"))], DOCS, PYTHONPATH=str(tmp_path))
    assert said in printed and ("注意" in printed) == ("注意" in said)
    assert (json.loads(asked.read_text()) if asked.exists() else None) == (pip and ["install", *pip])


def test_without_the_library_a_sentence_says_what_to_do(tmp_path):
    result = subprocess.run(
        [sys.executable, "-S", "-c", source(the_cell("def missing"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 1 and "找不到 paddle_maml" in result.stderr


# ---- all of it ----


def small(notebook, **parameters):
    """The notebook with other parameters, and so small a training that it takes seconds."""
    notebook = json.loads(json.dumps(notebook))
    (cell,) = [cell for cell in notebook["cells"] if cell["metadata"].get("tags") == ["parameters"]]
    names = [line.split(" = ")[0] for line in source(cell).splitlines() if " = " in line]
    values = {"DATA": "auto", "DATA_DIR": None, "OUTPUT": None, "TRAIN": TINY, "EPISODES": 4, **parameters}
    assert list(values) == names
    cell["source"] = [f"{name} = {value!r}\n" for name, value in values.items()]
    return notebook


def check_output(folder, printed):
    """What a run left and said."""
    assert len(read_metrics(str(folder / "notebook-synthetic" / METRICS))) == 4
    report = json.loads((folder / "notebook-synthetic" / "report.json").read_text())
    assert report["iterations"] == 20 and f"测试准确率 {report['test']['accuracy']:.2%}" in printed
    assert "synthetic, test split, 5-way 1-shot" in printed and "95 % interval over 4 episodes" in printed
    for label in ("cross", "stairs", "gate"):  # each is taken for itself
        assert any(line.split()[1:2] == [label] for line in printed.splitlines() if f"{label}.png" in line)
    card = json.loads(Path(ROOT, "paddle_maml", "pretrained", "5way-1shot.json").read_text())
    for test in ("test", "test_support_statistics"):
        assert f"{card[test]['accuracy']:.2%} ± {card[test]['interval']:.2%}" in printed


PLAIN = """
    import json, sys

    names = {"__name__": "__main__"}
    cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    for number, source in enumerate(code):
        exec(compile(source, f"cell {number}", "exec"), names)
        if 'run("train.py"' in source:
            exec(compile(source, f"cell {number} again", "exec"), names)  # goes on from where it was
"""


@pytest.mark.slow
def test_it_runs_on_ai_studio_without_jupyter(tmp_path):
    """The project lies in work/, the notebook elsewhere; there is no data set; output goes to work/."""
    home, empty = tmp_path / "aistudio", tmp_path / "empty"
    (home / "work").mkdir(parents=True)
    empty.mkdir()
    (home / "work" / "maml").symlink_to(ROOT, target_is_directory=True)
    notebook = small(NOTEBOOK)
    text = json.dumps(notebook)
    assert text.count('Path(\\"/home/aistudio\\")') == 1
    (home / "a.ipynb").write_text(text.replace("/home/aistudio\\", f"{home}\\"))
    (tmp_path / "plain.py").write_text(textwrap.dedent(PLAIN))
    printed = run([str(tmp_path / "plain.py"), "a.ipynb"], home, OMNIGLOT_DIR=str(empty))
    output = home / "work" / "runs"
    check_output(output, printed)
    assert "没有可用的 Omniglot" in printed and f"There is no Omniglot in {empty}" in printed
    assert printed.count(f"图片：{output / 'curve.png'}") >= 3  # while it trains, at the end, and once more
    assert "Continuing" in printed
    pictures = {path.name for path in output.glob("*.png")}
    assert pictures == {"episode-0.png", "episode-1.png", "curve.png", "answers.png", "my-characters.png"}
    assert {path.name for path in home.iterdir()} == {"a.ipynb", "work"}


BROKEN_OFF = """
    done = []


    def meanwhile():
        if (OUTPUT / "run" / "metrics.csv").exists() and not done:
            done.append(True)
            HOW


    run("train.py", [*TRAIN, "--iterations", "100000", "--output", str(OUTPUT / "run")], meanwhile)
"""


def break_off(folder, how, status):
    """Run the cells up to the training, which is broken off once it has a row in its log."""
    cells = [cell for cell in small(NOTEBOOK, OUTPUT=str(folder))["cells"] if cell["cell_type"] == "code"]
    program = "\n".join([*map(source, cells[:3]), textwrap.dedent(BROKEN_OFF).replace("HOW", how)])
    run(["-c", program], DOCS, status)
    assert newest_checkpoint(str(folder / "run")) and not (folder / "run" / "report.json").exists()


@pytest.mark.slow
def test_training_saves_when_the_cell_is_interrupted(tmp_path):
    break_off(tmp_path, "raise KeyboardInterrupt", 0)
    assert "Stopped after meta-iteration" in (tmp_path / "train.py.log").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the training goes on")
def test_training_ends_with_the_kernel(tmp_path):
    break_off(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)
    end = time.monotonic() + 20
    while True:
        try:
            with lock_folder(str(tmp_path / "run")):
                return
        except UserError:
            assert time.monotonic() < end, "it goes on"
            time.sleep(0.2)


JUPYTER = """
    import sys
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(sys.argv[1], as_version=4)
    NotebookClient(notebook, timeout=200).execute()
    nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.slow
def test_it_runs_in_jupyter(tmp_path):
    for package in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    notebook = small(NOTEBOOK, DATA="synthetic", OUTPUT=str(tmp_path / "output"))
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    program = textwrap.dedent(JUPYTER)
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    places["IPYTHONDIR"] = str(tmp_path / "ipython")
    run(["-c", program, str(tmp_path / "a.ipynb"), str(tmp_path / "done.ipynb")], DOCS, **places)
    cells = json.loads((tmp_path / "done.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    check_output(tmp_path / "output", "".join("".join(one["text"]) for one in outputs if "text" in one))
    shown = [
        len([one for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]) for cell in cells
    ]
    assert sorted(filter(None, shown)) == [1, 1, 1, 2]  # of the curves the last alone

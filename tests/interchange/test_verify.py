"""Two traces: that they agree is said, and where they part."""

import numpy as np
import pytest
from interchange_export import make
from PIL import Image

from paddle_maml.commands import cli
from paddle_maml.interchange.comparison import table
from paddle_maml.interchange.format import Trace, read_expected, read_export, read_trace
from paddle_maml.interchange.verify import compare, largest, report


def ours(small, problem, **arrays):
    """Our trace, as if from another implementation, with other arrays."""
    trace = read_expected(small, problem, 2, "float64")
    about = {**trace.about, "framework": "another", "reader": "other.py", "lines": 7}
    return Trace(about, {**trace.arrays, **arrays})


def parts(small, problem, **arrays):
    """The first quantity in which a changed trace parts from ours, None if in none."""
    rows = compare(problem, read_expected(small, problem, 2, "float64"), ours(small, problem, **arrays))
    return next((row for row in rows if not row.agrees), None)


def test_the_same_trace_agrees(small, problem, tmp_path, capfd):
    trace = ours(small, problem)
    trace.write(tmp_path / "trace.npz")
    assert cli.main(["interchange", "verify", str(small), str(tmp_path / "trace.npz")]) == 0
    output = capfd.readouterr().out
    assert "The two agree; the largest difference is 0.0e+00." in output and "DIFFERS" not in output


@pytest.mark.parametrize(
    "name, step, quantity, where",
    [
        ("support_loss", (1, 2), "support_loss after 2 inner steps", ""),
        ("query_loss", (0, 0), "query_loss after 0 inner steps", ""),
        ("gradient/block2.norm_bias", 3, "gradient", "block2.norm_bias"),
        ("gradient/block3.conv_bias", 0, "gradient", "block3.conv_bias"),
        ("weights_after_2/linear.weight", (0, 0), "weights_after_2", "linear.weight"),
        (
            "weights_after_1/block1.conv_bias",
            0,
            "weights_after_1, without a gradient",
            "block1.conv_bias, which should not move",
        ),
        ("loss", 9, "loss of the first meta-iterations", ""),
        ("test_loss", 4, "test_loss", ""),
    ],
)
def test_the_first_difference_is_named(small, problem, name, step, quantity, where):
    array = read_expected(small, problem, 2, "float64").arrays[name].copy()
    array[step] += 1e-6 * max(1, np.abs(array).max())
    row = parts(small, problem, **{name: array})
    assert (row.quantity, row.where) == (quantity, where)
    assert 1e-8 < row.difference < 1e-1
    array[step] -= 1e-6 * max(1, np.abs(array).max())
    assert parts(small, problem, **{name: array}) is None


def test_the_earlier_of_two_differences_is_named(small, problem):
    arrays = read_expected(small, problem, 2, "float64").arrays
    changed = {name: arrays[name] + 1e-3 for name in ("loss", "query_loss")}
    assert parts(small, problem, **changed).quantity == "query_loss after 0 inner steps"


def test_where_they_part_is_said_with_status_1(small, problem, tmp_path, capfd):
    gradient = np.full(problem.shapes["linear.bias"], 5.0)
    ours(small, problem, **{"gradient/linear.bias": gradient}).write(tmp_path / "trace.npz")
    assert cli.main(["interchange", "verify", str(small), str(tmp_path / "trace.npz")]) == 1
    output = capfd.readouterr().out
    assert "The two first part in gradient (linear.bias), by " in output and "1.0e-09 is allowed" in output


def test_the_two_orders_part_in_the_gradient(small, problem):
    first, second = (read_expected(small, problem, order, "float64") for order in (1, 2))
    rows = compare(problem, second, first)
    assert next(row for row in rows if not row.agrees).quantity == "gradient"
    assert "after 2 inner steps" in report(rows)


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """Twelve meta-iterations in float32, one order."""
    folder = tmp_path_factory.mktemp("longer") / "export"
    return make(folder, 12, ["float32"], [2])


def test_float32_weights_are_held_as_a_whole(longer):
    problem = read_export(longer)
    expected = read_expected(longer, problem, 2, "float32")
    name = "weights_after_2/block2.conv_weight"
    # One weight went the other way, as where its gradient is rounding.
    array = expected.arrays[name].copy()
    start = problem.weights["block2.conv_weight"]
    array[0, 0, 0, 0] = 2 * start[0, 0, 0, 0] - array[0, 0, 0, 0]
    rows = compare(problem, expected, Trace(expected.about, {**expected.arrays, name: array}))
    assert largest(rows) > 0 and all(row.agrees for row in rows if row.quantity != "weights_after_2")
    # All of them did.
    array = 2 * start - expected.arrays[name]
    rows = compare(problem, expected, Trace(expected.about, {**expected.arrays, name: array}))
    assert next(row for row in rows if not row.agrees).quantity == "weights_after_2"


def test_later_meta_iterations_are_held_by_the_test_alone(longer):
    problem = read_export(longer)
    expected = read_expected(longer, problem, 2, "float32")
    loss = expected.arrays["loss"].copy()
    loss[10:] += 0.1
    name = "weights_after_10/block2.conv_weight"
    weights = 2 * problem.weights["block2.conv_weight"] - expected.arrays[name]
    rows = compare(problem, expected, Trace(expected.about, {**expected.arrays, "loss": loss, name: weights}))
    assert all(row.agrees for row in rows)
    assert next(row for row in rows if row.quantity == "weights_after_10").difference > 0.1
    assert next(row for row in rows if row.quantity == "loss of the later ones").difference > 0.01
    worse = np.zeros_like(expected.arrays["test_accuracy"])
    rows = compare(problem, expected, Trace(expected.about, {**expected.arrays, "test_accuracy": worse}))
    assert next(row for row in rows if not row.agrees).quantity == "test_accuracy, the mean"


def test_traces_become_a_table_and_a_picture(small, problem, longer, tmp_path, capfd):
    (small / "traces").mkdir(exist_ok=True)
    trace = ours(small, problem)
    trace.arrays["loss"] = trace.arrays["loss"] * (1 + 1e-12)
    trace.write(small / "traces" / "other.npz")
    picture = tmp_path / "curves.png"
    command = ["interchange", "table", str(small), str(longer), "--picture", str(picture)]
    assert cli.main(command) == 0
    head, rule, *lines = capfd.readouterr().out.strip().splitlines()
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in (head, *lines)]
    assert len(lines) == 2 and all(len(line) == len(cells[0]) for line in cells)
    own = read_trace(longer / "expected_order2_float32.npz", read_export(longer))
    after = cells[0].index(f"accuracy after {len(own.arrays['loss'])}, %, order 2")
    assert cells[1][after].startswith(f"{100 * own.arrays['test_accuracy'].mean():.2f} ± ")
    assert not cells[2][after]  # the other's is in float64
    assert lines[1].startswith("| another ") and "| other.py (7) |" in lines[1] and "| 1e-12 |" in lines[1]
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width == 600
    assert table([str(small), str(longer)]).splitlines()[0] == head


def test_a_table_of_nothing_is_one_sentence(longer, tmp_path, capfd):
    assert cli.main(["interchange", "table", str(tmp_path)]) == 2
    assert "is no export" in capfd.readouterr().err

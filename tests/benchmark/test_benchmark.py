"""The benchmark: that all contestants do the same work, that they run, and what it reports. No time is
tested."""

import importlib.util
import json
import multiprocessing
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from paddle_maml.benchmark import __main__ as benchmark
from paddle_maml.benchmark import scaling
from paddle_maml.benchmark.contestants import (
    COMPETITION,
    JAX,
    OPPONENTS,
    OURS,
    PADDLEFSL,
    PYTORCH,
    SIDES,
    Contestant,
    candidates,
)
from paddle_maml.benchmark.limit import work
from paddle_maml.benchmark.measure import LossCheck, make_problem, ratios
from paddle_maml.benchmark.worker import Team, _environment, _free_port, maker
from paddle_maml.engine.settings import Settings, settings_from_dict
from paddle_maml.errors import UserError

TINY = ["--n-way", "3", "--k-query", "2", "--tasks", "3", "--steps", "2", "--width", "4", "--device", "cpu"]
CONV_BIASES = (1, 5, 9, 13)

# Every opponent and variant in every order that it has.
OPPOSING = [
    pytest.param(
        Contestant(side, variant, order),
        id=f"{side}-{variant}-{order}",
        marks=pytest.mark.slow if side == JAX else (),  # it compiles for seconds
    )
    for side in OPPONENTS
    for variant in SIDES[side].variants
    for order in SIDES[side].orders
]


def tiny_problem():
    return make_problem(
        settings_from_dict(
            {"n_way": 3, "k_query": 2, "meta_batch": 3, "inner_steps": 2, "width": 4, "image_size": 16}
        )
    )[0]


def make_side(contestant, problem):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old libraries warn of new ones
        for package in SIDES[contestant.side].packages:
            pytest.importorskip(package)
        return maker(contestant.side)(contestant, problem, "cpu")


def assert_close(gradients, expected, tolerance):
    whole = np.sqrt(sum(np.sum(g**2) for g in expected))
    assert whole > 0.01
    for number, (a, b) in enumerate(zip(gradients, expected)):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * whole, f"parameter {number}"


def compare(contestant, problem, loss_tolerance, gradient_tolerance):
    ours, theirs = (
        make_side(Contestant(OURS, "side by side", contestant.order), problem),
        make_side(contestant, problem),
    )
    loss = ours.meta_gradient()
    assert theirs.meta_gradient() == pytest.approx(loss, rel=loss_tolerance)
    assert np.mean(ours.losses()) == pytest.approx(loss, rel=loss_tolerance)
    assert_close(theirs.gradients(), ours.gradients(), gradient_tolerance)
    assert theirs.losses() == pytest.approx(ours.losses(), rel=loss_tolerance)


@pytest.mark.parametrize("contestant", [p for p in OPPOSING if p.values[0].side != PADDLEFSL])
def test_opponents_compute_our_loss_and_meta_gradient(float64, contestant):
    compare(contestant, tiny_problem(), 1e-10, 1e-9)


def test_paddlefsl_computes_our_loss_and_meta_gradient():
    """It has float32 only."""
    compare(Contestant(PADDLEFSL, "loop", 1), tiny_problem(), 1e-5, 1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_orders_differ(float64):
    problem = tiny_problem()
    first, second = (make_side(Contestant(PYTORCH, "loop", order), problem) for order in (1, 2))
    first.meta_gradient(), second.meta_gradient()
    assert np.linalg.norm(first.gradients()[0] - second.gradients()[0]) > 1e-3 * np.linalg.norm(
        second.gradients()[0]
    )


@pytest.mark.parametrize(
    "contestant", [pytest.param(Contestant(OURS, "side by side", 2), id="ours"), *OPPOSING]
)
def test_every_meta_iteration_starts_from_the_initial_weights(contestant):
    problem = tiny_problem()
    before = [array.copy() for array in problem.weights]
    side = make_side(contestant, problem)
    loss = side.meta_iteration()
    moved = side.meta_iteration()
    side.reset()
    assert moved != loss and side.meta_iteration() == pytest.approx(loss, rel=1e-6)
    for a, b in zip(problem.weights, before):
        np.testing.assert_array_equal(a, b)


def _send_gradients(connection, contestant, part):
    side = make_side(contestant, part)
    loss = side.meta_gradient()
    connection.send((loss, side.gradients()))
    connection.recv()  # nobody leaves before the others are done


@pytest.mark.parametrize(
    "side, variant",
    [
        (OURS, "side by side"),
        *(pytest.param(side, SIDES[side].variants[0], marks=pytest.mark.slow) for side in OPPONENTS),
    ],
)
def test_two_processes_average_as_one(side, variant):
    alone = make_side(Contestant(side, variant, 1), tiny_problem())
    problem, context, port = tiny_problem(), multiprocessing.get_context("spawn"), _free_port()
    contestant, connections = Contestant(side, variant, 1, processes=2), []
    for rank in (0, 1):
        here, there = context.Pipe()
        with _environment(contestant, rank, port):
            context.Process(
                target=_send_gradients, args=(there, contestant, problem.part(rank, 2)), daemon=True
            ).start()
        connections.append(here)
    answers = [connection.recv() for connection in connections]
    for connection in connections:
        connection.send("leave")
    loss = alone.meta_gradient()
    for their_loss, gradients in answers:
        assert their_loss == pytest.approx(loss, rel=1e-5)
        assert_close(gradients, alone.gradients(), 1e-5)


def test_parts_are_all_tasks_once():
    problem = tiny_problem()
    parts = [problem.part(rank, 2) for rank in (0, 1)]
    for number, whole in enumerate(problem.batch):
        np.testing.assert_array_equal(np.concatenate([part.batch[number] for part in parts]), whole)
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_candidates():
    assert candidates(OURS, 1, 2, 1) == [Contestant(OURS, "side by side", 1, 2, 1)]
    arrangements = {
        (c.variant, c.processes, c.threads, c.tuned_allocator) for c in candidates(PYTORCH, 2, 2, 1)
    }
    assert arrangements == {
        (variant, *cores, False) for variant in SIDES[PYTORCH].variants for cores in ((1, 2), (2, 1))
    }
    assert all(c.tuned_allocator for c in candidates(COMPETITION, 1, 2, 1, tune_opponents=True))


def test_loss_check_refuses_other_work_and_bears_a_kink():
    a, b = Contestant(OURS, "side by side", 1), Contestant(COMPETITION, "loop", 1)
    losses = [0.5, 1.0, 1.5]
    check = LossCheck()
    check(a, losses)
    check(b, [0.5 + 1e-6, 1.0, 1.6])
    with pytest.raises(UserError, match="competition .* differ in"):
        check(b, [0.51, 1.01, 1.5])
    with pytest.raises(UserError, match="adaptation of competition .* diverges"):
        check(b, [0.5, float("nan"), 1.5])


def test_ratios_are_of_medians():
    rows = [
        {"side": side, "order": order, "seconds": seconds, "median_s": sorted(seconds)[1]}
        for side, order, seconds in (
            (OURS, 1, [1, 1, 2]),
            (COMPETITION, 1, [10, 11, 12]),
            (OURS, 2, [2, 2, 3]),
        )
    ]
    against, orders = ratios(rows)
    assert against == {"of": [COMPETITION, 1], "to": [OURS, 1], "ratio": 11, "low": 6, "high": 11}
    assert orders == {"of": [OURS, 2], "to": [OURS, 1], "ratio": 2, "low": 1.5, "high": 2}


def test_a_process_that_dies_is_reported():
    with Team(Contestant(OURS, "side by side", 1), tiny_problem(), "cpu") as team:
        team._processes[0].kill()
        with pytest.raises(UserError, match="ended with status -9"):
            team.run()


def test_work_by_hand():
    """One task, class, inner step and query image of 16x16 pixels, width 2: maps of 16, 8, 4 and 2."""
    settings = Settings(n_way=1, k_query=1, meta_batch=1, inner_steps=1, image_size=16, width=2)
    first, others = 2 * 9 * 2 * 16**2, 2 * 9 * 2 * 2 * (8**2 + 4**2 + 2**2)
    gradients = 2 * (2 * first + 3 * others)  # two images; none by the input of the first block
    assert work(settings, 1)[0] == pytest.approx(gradients / 1e9)
    assert work(settings, 2)[0] == pytest.approx((gradients + 2 * first + 6 * others) / 1e9)
    assert work(settings, 1)[1] == pytest.approx((4 * first + 6 * others * 16 / 36) / 1e9)


@pytest.mark.slow
def test_report(tmp_path, capsys):
    path = tmp_path / "report.json"
    options = [
        "--against",
        "competition",
        "--repeat",
        "2",
        "--warmup",
        "0",
        "--processes",
        "2",
        "--json",
        str(path),
    ]
    assert benchmark.main(TINY + options) == 0
    report = json.loads(path.read_text())
    assert {
        "command",
        "machine",
        "settings",
        "threads",
        "tuned_opponents",
        "warmup",
        "repeat",
        "turn",
        "heats",
        "results",
        "ratios",
        "limits",
        "episode_building_s",
    } == set(report)
    assert {
        "processor",
        "cores",
        "native_kernel",
        "load_before",
        "paddle",
        "packages",
        "numpy",
        "python",
        "platform",
        "device",
    } == set(report["machine"])
    assert report["settings"]["meta_batch"] == 3 and report["settings"]["processes"] == 2
    assert [(row["side"], row["order"]) for row in report["results"]] == [
        (OURS, 1),
        (COMPETITION, 1),
        (OURS, 2),
    ]
    for row in report["results"]:
        low, high = sorted(row["seconds"])
        assert (
            row["min_s"] == low > 0
            and row["max_s"] == high
            and row["median_s"] == pytest.approx((low + high) / 2)
        )
        assert (
            row["episodes_per_s"]
            == pytest.approx(3 * row["meta_iterations_per_s"])
            == pytest.approx(3 / row["median_s"])
        )
        assert row["loss"] == pytest.approx(report["results"][0]["loss"], rel=0.1)
        assert not sys.platform.startswith("linux") or row["peak_memory_bytes"] > 0
    assert {(row["processes"], row["threads"]) for row in report["heats"]} == {
        (2, report["threads"]),
        (1, 2 * report["threads"]),
    }
    assert [(ratio["of"], ratio["to"]) for ratio in report["ratios"]] == [
        ([COMPETITION, 1], [OURS, 1]),
        ([OURS, 2], [OURS, 1]),
    ]
    screen = capsys.readouterr().out
    assert (
        "order 1: competition takes" in screen
        and "ours: order 2 takes" in screen
        and "competition has no order 2" in screen
    )
    for limit, row in zip(report["limits"], [row for row in report["results"] if row["side"] == OURS]):
        rate = limit["gflop_winograd"] / row["median_s"] / (limit["core_gflop_per_s"] * limit["cores"])
        assert limit["order"] == row["order"] and 0 < limit["ratio"] == pytest.approx(rate)
        assert limit["core_gflop_per_s"] > 0.1


def test_scaling(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "sweeps", lambda settings: {scaling.TASKS: [1, 3], scaling.INNER_STEPS: [2]})
    picture, path = tmp_path / "scaling.png", tmp_path / "report.json"
    options = [
        "--scaling",
        str(picture),
        "--orders",
        "1",
        "--repeat",
        "1",
        "--warmup",
        "0",
        "--processes",
        "1",
        "--json",
        str(path),
    ]
    assert benchmark.main(TINY + options) == 0
    rows = json.loads(path.read_text())["scaling"]
    assert [(row["quantity"], row["value"]) for row in rows] == [
        ("tasks", 1),
        ("tasks", 3),
        ("inner steps", 2),
    ]
    assert rows[1]["seconds"] == rows[2]["seconds"]  # the same point, measured once
    with Image.open(picture) as image:
        assert image.format == "PNG" and (31, 97, 166) in [colour for _, colour in image.getcolors(1 << 16)]
    assert "inner steps" in capsys.readouterr().out


def test_sweeps_end_at_the_settings():
    values = scaling.sweeps(settings_from_dict({"meta_batch": 6, "processes": 3}))
    assert values[scaling.TASKS] == [1, 2, 4, 6] and values[scaling.PROCESSES] == [1, 2, 3]
    assert {2, 20} <= set(values[scaling.INNER_STEPS]) and {5, 20} <= set(values[scaling.N_WAY])


@pytest.mark.parametrize("side", [side for side in OPPONENTS if SIDES[side].packages])
def test_a_missing_package_is_one_message(side, monkeypatch, capsys):
    *others, package = SIDES[side].packages
    for name in others:  # as if they were installed
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, package, None)
    assert benchmark.main(TINY + ["--against", "competition," + side]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --against {side} needs {package}, which is not installed: {SIDES[side].install}, or "
        f"leave {side} out.\n"
    )


def test_a_package_that_cannot_be_imported_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "higher.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "higher", raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    with pytest.raises(UserError, match="higher is installed but cannot be imported.*nothing_of_this_name"):
        maker("higher")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--against", "tensorflow"], "tensorflow is none of competition, pytorch"),
        (["--orders", "1,3"], "3 is none of 1, 2"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--processes", "4"], "only 3 tasks"),
        (["--json", "/nowhere/report.json"], "/nowhere/report.json"),
        (["--json", "."], "must name a file"),
        (["--json="], "--json is ''"),
        (["--scaling", "x.jpg"], "let its name end in .png"),
        (["--threads", "1000000"], "--threads is 1000000"),
        (["--tasks", "0"], "--tasks is 0"),
        (["--order", "1"], "--orders"),
    ],
)
def test_wrong_options_are_one_message(options, words, capsys):
    assert benchmark.main(TINY + options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1

"""Exports and traces: what they hold, and that what is wrong with them is said in one sentence."""

import json
import os
import shutil

import numpy as np
import pytest
from interchange_export import SMALL, make

from paddle_maml.commands import cli
from paddle_maml.data.episodes import EpisodeBuilder
from paddle_maml.engine.assembly import load_images
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError
from paddle_maml.interchange.export import check_exportable
from paddle_maml.interchange.format import expected_name, read_expected, read_export, read_trace


def test_an_export_holds_the_episodes_of_training_and_test(problem):
    settings = settings_from_preset("omniglot-5way-1shot", **SMALL)
    parts, _ = load_images(settings)
    for part, k_query, rotations, count in (("train", 2, True, 20), ("test", 3, False, 5)):
        builder = EpisodeBuilder(parts[part], 3, 1, k_query, seed=3, rotations=rotations)
        arrays = problem.episode_arrays(part, range(count))
        for index in range(count):
            for ours, theirs in zip(arrays, builder[index]):
                np.testing.assert_array_equal(ours[index], theirs)
            drawn = [[number, turns, *chosen] for number, turns, chosen in builder.draw(index)]
            assert problem.episodes[part]["drawn"][index].tolist() == drawn
        assert len(problem.episodes[part]["support"]) == count
        assert problem.about["episodes"]["classes"][part] == list(parts[part].classes)


def test_an_export_is_plain_little_endian_and_the_same_again(small, tmp_path):
    for name in os.listdir(small):
        if name.endswith(".npz"):
            with np.load(small / name, allow_pickle=False) as arrays:
                for array in arrays.values():
                    assert array.dtype.str[0] in "<|" and array.flags.c_contiguous
    again = make(tmp_path / "again", 10, ["float64"], [1])
    for name in ("interchange.json", "weights.npz", "train.npz", "test.npz"):
        assert (again / name).read_bytes() == (small / name).read_bytes()


def test_the_rates_are_those_of_training(problem):
    rates = np.array(problem.about["meta_lr"])
    np.testing.assert_allclose(rates, 0.001 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2, rtol=1e-12)
    assert problem.about["weights_after"] == [1, 2, 10]


@pytest.mark.parametrize(
    "preset, sentence",
    [
        ("prototypical-5way-1shot", "--learner is prototypical"),
        ("mlp-5way-1shot", "--network is mlp"),
        ("sinusoid", "--network is mlp"),
        ("best-20way-1shot", "--learn-inner-lr is True"),
        ("best-5way-1shot", "--start-from is 20way-1shot"),
    ],
)
def test_what_the_format_has_no_words_for_is_refused(preset, sentence):
    with pytest.raises(UserError, match=sentence):
        check_exportable(settings_from_preset(preset))


# ---- what is wrong ----


def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "export")


def refused(capfd, *arguments):
    """The one sentence of a command that fails."""
    assert cli.main(["interchange", *map(str, arguments)]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def verify(small, trace, capfd):
    return refused(capfd, "verify", small, trace)


def changed_json(folder, **changes):
    path = folder / "interchange.json"
    about = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in about.items() if v is not None}), encoding="utf-8")


def trace_with(problem, small, path, about=(), arrays=()):
    """Our trace of order 2 with changes; a None takes away."""
    trace = read_expected(small, problem, 2, "float64")
    trace.about.update(about)
    trace.arrays.update(arrays)
    for part in (trace.about, trace.arrays):
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    trace.write(path)
    return path


@pytest.mark.parametrize(
    "break_it, sentence",
    [
        (lambda folder: (folder / "interchange.json").unlink(), "is no export"),
        (lambda folder: (folder / "interchange.json").write_text("{"), "holds no JSON"),
        (lambda folder: (folder / "interchange.json").write_text("[]"), "no object"),
        (lambda folder: changed_json(folder, version=2), "version 2 of the format"),
        (lambda folder: changed_json(folder, format="another"), "has the format 'another'"),
        (lambda folder: changed_json(folder, meta_lr=None), "meta_lr is missing"),
        (lambda folder: changed_json(folder, inner_lr=0.2), "interchange.json is damaged"),
        (lambda folder: (folder / "train.npz").unlink(), "is cut short: train.npz is missing"),
        (lambda folder: os.truncate(folder / "train.npz", 10000), "train.npz is damaged or was cut short"),
        (lambda folder: (folder / expected_name(2, "float64")).unlink(), "no expected trace of order 2"),
    ],
)
def test_a_damaged_export_is_one_sentence(small, problem, tmp_path, capfd, break_it, sentence):
    trace = small / expected_name(2, "float64")
    folder = copy(small, tmp_path)
    break_it(folder)
    assert sentence in verify(folder, trace, capfd)


@pytest.mark.parametrize(
    "about, arrays, sentence",
    [
        ({}, {"query_loss": None}, "lacks the quantity query_loss"),
        ({}, {"gradient/linear.bias": None}, "lacks the quantity gradient/linear.bias"),
        ({}, {"loss": np.zeros(3)}, r"has loss of shape (3,), but it must be (10,)"),
        ({}, {"loss": np.full(10, np.nan)}, "not of finite floating-point numbers"),
        ({}, {"loss": np.zeros(10, int)}, "not of finite floating-point numbers"),
        ({"version": 7}, {}, "version 7 of the format"),
        ({"format": "paddle_maml interchange"}, {}, "but must have 'paddle_maml trace'"),
        ({"export": "0" * 64}, {}, "is of another export"),
        ({"order": 3}, {}, "has order 3"),
        ({"dtype": "float16"}, {}, "has dtype 'float16'"),
        ({"framework": None}, {}, "does not say its framework"),
    ],
)
def test_a_wrong_trace_is_one_sentence(small, problem, tmp_path, capfd, about, arrays, sentence):
    path = trace_with(problem, small, tmp_path / "trace.npz", about, arrays)
    assert sentence in verify(small, path, capfd)


@pytest.mark.parametrize(
    "content, sentence",
    [(None, "There is no trace"), (b"", "holds no arrays"), (b"no zip", "holds no arrays")],
)
def test_what_is_no_npz_is_one_sentence(small, tmp_path, capfd, content, sentence):
    path = tmp_path / "trace.npz"
    if content is not None:
        path.write_bytes(content)
    assert sentence in verify(small, path, capfd)


def test_nothing_is_unpickled(small, tmp_path, capfd):
    path = tmp_path / "trace.npz"
    np.savez(path, about=np.array([{"a": print}], dtype=object))
    assert "holds no arrays" in verify(small, path, capfd)


def test_a_trace_that_was_cut_short_is_one_sentence(small, tmp_path, capfd):
    path = tmp_path / "trace.npz"
    shutil.copy(small / expected_name(2, "float64"), path)
    os.truncate(path, path.stat().st_size // 2)
    assert "damaged" in verify(small, path, capfd)


def test_what_was_written_is_read(small, problem, tmp_path):
    trace = read_expected(small, problem, 1, "float64")
    trace.write(tmp_path / "trace.npz")
    again = read_trace(tmp_path / "trace.npz", problem)
    assert again.about["order"] == 1 and set(again.arrays) == set(problem.quantities())
    assert read_export(small).about == problem.about

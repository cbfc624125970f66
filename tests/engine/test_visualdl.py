"""--visualdl with the package itself: what it reads back is what metrics.csv, the settings and the episodes
are."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_run import TINY, call

from paddle_maml.engine import training
from paddle_maml.engine.run_folder import EPISODES_SHOWN
from paddle_maml.engine.settings import settings_from_preset
from paddle_maml.errors import UserError
from paddle_maml.report.log import METRICS, VISUALDL, read_metrics
from paddle_maml.report.pictures import draw_episode_table

visualdl = pytest.importorskip("visualdl")


def run(folder, **changes):
    settings = settings_from_preset(**{**TINY, "output": str(folder), "visualdl": True, **changes})
    training.train(settings)
    return settings, visualdl.LogReader(file_path=os.path.join(folder, VISUALDL))


def scalars(reader):
    """{(column, meta-iteration): value} of VisualDL's log."""
    tags = reader.get_tags()["scalar"]
    records = [(tag, record) for tag in tags for record in reader.get_data("scalar", tag)]
    found = {(tag, record.id): record.value for tag, record in records}
    assert len(found) == len(records)  # none twice
    return found


def of_metrics(folder):
    """The same of metrics.csv."""
    return {
        (name, int(row["iteration"])): float(value)
        for row in read_metrics(os.path.join(folder, METRICS))
        for name, value in row.items()
        if name != "iteration" and value
    }


def hyper_parameters(reader):
    (record,) = reader.get_data("hyper_parameters", "hparam")
    values = {one.name: getattr(one, one.WhichOneof("type")) for one in record.hparam.hparamInfos}
    return values, [one.name for one in record.hparam.metricInfos]


def picture(reader, name):
    (record,) = reader.get_data("image", name)
    return np.asarray(Image.open(io.BytesIO(record.image.encoded_image_string)))


def test_visualdl_has_metrics_hyper_parameters_and_episodes(tmp_path):
    settings, reader = run(tmp_path / "run")
    expected = of_metrics(tmp_path / "run")
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= {name for name, _ in expected}
    assert scalars(reader) == pytest.approx(expected, rel=1e-6)

    values, metrics = hyper_parameters(reader)
    assert values == {name: value for name, value in settings.as_dict().items() if value is not None}
    assert set(metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}

    parts, _ = training.load_training_images(settings, lambda line: None)
    episode = draw_episode_table(*training.training_episodes(settings, parts["train"])[0])
    page = picture(reader, "episodes/training")
    assert page.shape[0] == EPISODES_SHOWN * episode.height
    np.testing.assert_array_equal(page[: episode.height, : episode.width], np.asarray(episode))
    assert picture(reader, "episodes/validation").shape[0] == EPISODES_SHOWN * episode.height


def test_a_resumed_run_has_all_of_it_once(tmp_path):
    run(tmp_path / "run", iterations=6)
    _, reader = run(tmp_path / "run", resume=True)
    expected = of_metrics(tmp_path / "run")
    assert max(iteration for _, iteration in expected) == TINY["iterations"]
    assert scalars(reader) == pytest.approx(expected, rel=1e-6)
    assert os.listdir(tmp_path / "run" / "visualdl") == [os.path.basename(VISUALDL)]


def test_a_regression_has_no_pictures_and_no_accuracy(tmp_path):
    options = "--preset sinusoid --hidden 8,8 --iterations 4 --val-episodes 4 --test-episodes 4 --visualdl"
    status, _, errors = call("train.py", [*options.split(), "--output", str(tmp_path / "run")])
    assert status == 0, errors
    reader = visualdl.LogReader(file_path=str(tmp_path / "run" / VISUALDL))
    assert scalars(reader) == pytest.approx(of_metrics(tmp_path / "run"), rel=1e-6)
    assert "image" not in reader.get_tags()
    assert set(hyper_parameters(reader)[1]) == {"loss", "val_loss"}


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="lower inner_lr"):
        run(tmp_path / "run", inner_lr=1e30)
    assert not (tmp_path / "run").exists()


def test_without_the_option_visualdl_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "visualdl", None)
    training.train(settings_from_preset(**{**TINY, "output": str(tmp_path / "run"), "iterations": 1}))
    assert not (tmp_path / "run" / "visualdl").exists()

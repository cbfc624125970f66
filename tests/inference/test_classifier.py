"""Five lines: weights adapt to a user's own images and classify others."""

import numpy as np
import paddle
import pytest
from drawn import drawings, write_folder
from PIL import Image

import paddle_maml
from paddle_maml.data.episodes import EpisodeBuilder
from paddle_maml.data.synthetic import draw_synthetic
from paddle_maml.errors import UserError
from paddle_maml.learners.base import Learner

LABELS = list("abcde")


@pytest.fixture(scope="module")
def classifier():
    return paddle_maml.load("5way-1shot")


@pytest.fixture(scope="module")
def drawn():
    return drawings()


@pytest.fixture(scope="module")
def folders(drawn, tmp_path_factory):
    """Folders of support (1 image a class) and query images (10 a class)."""
    folder = tmp_path_factory.mktemp("own")
    return write_folder(folder / "support", drawn[:, :1]), write_folder(folder / "query", drawn[:, 10:])


@pytest.fixture(scope="module")
def task(classifier, folders):
    return classifier.adapt(folders[0])


def test_folders(task, folders):
    prediction = task.predict(folders[1])
    assert task.classes == prediction.classes == tuple(LABELS) and task.shots == (1,) * 5
    assert prediction.probabilities.shape == (50, 5) and len(prediction) == 50
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1)
    assert prediction.truth[:11] == ("a",) * 10 + ("b",) and prediction.names[0].endswith("query/a/00.png")
    assert prediction.accuracy == np.mean(np.array(prediction.labels) == np.array(prediction.truth)) > 0.8
    assert task.inverted == prediction.inverted == 0


def test_every_form_gives_the_same(classifier, drawn, task, folders, tmp_path):
    expected = task.predict(folders[1]).probabilities
    support, queries = drawn[:, 0], drawn[:, 10:].reshape(-1, 105, 105)
    for form in (
        lambda images: images,
        lambda images: images[:, None],
        lambda images: np.repeat(images[..., None], 3, axis=3),
        lambda images: paddle.to_tensor(images),
        lambda images: list(images),
        lambda images: (Image.fromarray(image) for image in images),
        lambda images: [image[None] for image in images],
    ):
        again = classifier.adapt(form(support), LABELS)
        prediction = again.predict(form(queries))
        np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)
        assert again.classes == tuple(LABELS) and prediction.truth is prediction.accuracy is None
    paths = [f"{folders[0]}/{label}/00.png" for label in LABELS]
    by_number = classifier.adapt(paths, np.arange(5))
    assert by_number.predict(queries[0]).labels[0] in range(5)
    flat = write_folder(tmp_path, [queries], ["flat"])
    np.testing.assert_allclose(by_number.predict(f"{flat}/flat").probabilities, expected, atol=1e-5)


def test_an_answer_does_not_depend_on_its_companions(task, drawn):
    queries = drawn[:, 5:8].reshape(-1, 105, 105)
    together = task.predict(queries)
    alone = np.concatenate([task.predict(query).probabilities for query in queries])
    np.testing.assert_allclose(alone, together.probabilities, atol=1e-5)
    assert task.predict(list(queries) * 6).labels == together.labels * 6
    published = task.predict(queries, statistics="query").probabilities
    of_a_few = task.predict(queries[:3], statistics="query").probabilities
    assert np.abs(published[:3] - of_a_few).max() > 1e-3


def odds(logits):
    """Their softmax."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_the_published_protocol_is_the_learners(classifier):
    x_spt, y_spt, x_qry, _ = EpisodeBuilder(draw_synthetic(1, 6), 5, 1, 3)[0]
    logits = classifier.learner.predict(x_spt, y_spt, x_qry)
    task = classifier.adapt(x_spt, y_spt)
    found = task.predict(x_qry, statistics="query").probabilities
    np.testing.assert_allclose(found, odds(logits), atol=1e-5)


@pytest.mark.parametrize("change", [lambda x: 255 - x, lambda x: 60 + x // 2], ids=["white on black", "grey"])
def test_ink_and_paper_of_any_kind(classifier, drawn, task, change):
    queries = drawn[:, 10:13].reshape(-1, 105, 105)
    expected = task.predict(queries)
    prediction = task.predict(change(queries))
    np.testing.assert_allclose(prediction.probabilities, expected.probabilities, atol=0.02)
    other = classifier.adapt(change(drawn[:, 0]), LABELS)
    np.testing.assert_allclose(other.predict(queries).probabilities, expected.probabilities, atol=0.02)
    inverted = change(queries[0]).min() == change(queries[0])[0, 0]
    assert (prediction.inverted, other.inverted) == ((15, 5) if inverted else (0, 0))


def test_fewer_classes_and_uneven_shots(classifier, drawn, tmp_path):
    support = write_folder(tmp_path, [drawn[0, :3], drawn[1, :1], drawn[2, :1]])
    write_folder(tmp_path, [[np.pad(drawn[1, 1], 30, constant_values=255)]], "b", ".jpg")  # another size
    task = classifier.adapt(support)
    assert task.classes == ("a", "b", "c") and task.shots == (3, 2, 1)
    prediction = task.predict(drawn[:3, 10:].reshape(-1, 105, 105))
    assert prediction.probabilities.shape == (30, 3)
    assert np.mean(np.array(prediction.labels) == np.repeat(list("abc"), 10)) > 0.8


@pytest.mark.parametrize(
    "support, labels, message",
    [
        ("absent", None, "There is no file or folder absent"),
        ("empty", None, "empty is empty: it must hold images"),
        ("hollow", None, "hollow/b is empty: it must hold images"),
        ("mixed", None, "mixed holds images .x.png. beside folders .a."),
        ("six", None, "The support set has 6 classes, but these weights tell 2 to 5 apart"),
        ("one", None, "The support set has 1 classes"),
        ("flat", None, "flat/00.png has no label"),
        ("six", LABELS, "which names the labels: leave labels out"),
        ("moving", None, "moving/a/x.GIF is none of .png, .jpg, .jpeg, .bmp, .webp: convert it, or move it"),
        ("words", None, "words/a/00.png is no PNG, JPEG, BMP or WebP image"),
        (
            np.zeros((2, 28, 28), np.uint8),
            ["a"],
            "the support set has 2 images and 1 labels: give one for each",
        ),
        (np.eye(28, dtype=np.uint8)[None] * 99, [[1]], "A label is .1., which is no text of one line"),
        (
            np.eye(28, dtype=np.uint8)[None] * 99,
            ["a\nb"],
            r"A label is 'a\\nb', which is no text of one line",
        ),
        (np.eye(28, dtype=np.uint8)[None] * 99, [float("nan")], "A label is nan, which is no text of one"),
        (np.zeros((2, 28, 28), int), ["a", "b"], "must be a Pillow image, or an array of uint8"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), None, "is an array of shape .1, 2, 3, 4, 5., but must be"),
        ([], [], "There are no images in the support set"),
        (7, None, "is of type int, but must be images or a folder"),
        ([object()], ["a"], "image 0 of the support set has an image of type object"),
    ],
)
def test_support_sets_that_are_none(classifier, drawn, tmp_path, monkeypatch, support, labels, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "hollow/b", "words/a", "mixed/a"):
        (tmp_path / name).mkdir(parents=True)
    write_folder("hollow", drawn[:1, :1])
    write_folder("six", [drawn[0, :1]] * 6, "abcdef")
    write_folder("one", drawn[:1, :1])
    write_folder(".", drawn[:1, :1], ["flat"])
    (tmp_path / "words/a/00.png").write_text("words")
    Image.fromarray(drawn[0, 0]).save("mixed/x.png")
    write_folder("moving", drawn[:2, :1], "ab")
    Image.fromarray(drawn[0, 0]).save("moving/a/x.GIF")
    with pytest.raises(UserError, match=message) as raised:
        classifier.adapt(support, labels)
    assert "\n" not in str(raised.value)


def test_queries_that_are_none(task, drawn, tmp_path):
    other = write_folder(tmp_path / "other", drawn[:1, :1], ["ä"])
    with pytest.raises(UserError, match="is in the folder of a class 'ä', but the task has a, b, c, d, e"):
        task.predict(other)
    with pytest.raises(UserError, match="There are no images in the query set"):
        task.predict([])
    with pytest.raises(UserError, match="shows nothing but one colour"):
        task.predict(np.full((105, 105), 255, np.uint8))
    with pytest.raises(UserError, match="statistics is 'all', but must be one of support, query"):
        task.predict(drawn[0, 0], statistics="all")
    for wrong in (np.full((1, 28, 28), 0.5), np.zeros((1, 50, 50)), np.full((1, 28, 28), -np.inf)):
        with pytest.raises(UserError, match="image 0 of the query set is floating point .*: give uint8"):
            task.predict([wrong.astype("float32")])
    with pytest.raises(UserError, match="ink is 'blue', but must be one of auto, dark, light"):
        task._classifier.adapt(drawn[:, 0], LABELS, ink="blue")


@pytest.mark.parametrize(
    "source, settings, message",
    [
        ("5way-1shoot", {}, "no pretrained weights of that name; there are: .*5way-1shot"),
        ("5way-1shot", {"n_way": 7}, "--n-way is 7, but these weights were trained with 5"),
        ("5way-1shot", {"steps": 7}, "There is no setting 'steps'"),
        ("FILE", {}, "a file of weights on its own, whose network is not known"),
        ("FILE", {"n_way": 20}, "linear.weight has shape"),
    ],
)
def test_weights_that_cannot_be_had(tmp_path, source, settings, message):
    if source == "FILE":
        source = tmp_path / "x.pdparams"
        paddle.save(paddle_maml.MAML(5).state_dict(), str(source))
    with pytest.raises(UserError, match=message):
        paddle_maml.load(source, **settings)


def test_a_file_with_settings(tmp_path, drawn):
    paddle.save(paddle_maml.MAML(3, width=4).state_dict(), str(tmp_path / "x.pdparams"))
    classifier = paddle_maml.load(tmp_path / "x.pdparams", n_way=3, width=4, test_inner_steps=2)
    assert classifier.n_way == 3 and classifier.card is None
    assert len(classifier.adapt(drawn[:2, 0], ["x", "y"]).predict(drawn[0, 1]).labels) == 1


@pytest.mark.parametrize("steps", [0, np.int64(3), None])
def test_inner_steps(classifier, steps):
    x_spt, y_spt, x_qry, _ = EpisodeBuilder(draw_synthetic(1, 6), 5, 1, 3)[0]
    meant = classifier.settings.steps_at_test if steps is None else int(steps)
    logits = classifier.learner.predict(x_spt, y_spt, x_qry, steps=meant, statistics="support")
    found = classifier.adapt(x_spt, y_spt, steps=steps).predict(x_qry).probabilities
    np.testing.assert_allclose(found, odds(logits), atol=1e-5)


@pytest.mark.parametrize("steps", [-1, 1.0, "2"])
def test_no_number_of_inner_steps(classifier, drawn, steps):
    with pytest.raises(UserError, match=f"steps is {steps!r}, but must be a whole number, 0 or more"):
        classifier.adapt(drawn[:, 0], LABELS, steps=steps)


class Nearest(Learner):
    """A learner without adapted parameters: the class of the nearest support image."""

    def predict(self, x_spt, y_spt, x_qry, statistics="query"):
        assert statistics == "support"
        distances = ((x_qry[:, None] - x_spt[None]) ** 2).sum(axis=(2, 3, 4))
        return -np.stack([distances[:, y_spt == label].min(axis=1) for label in range(5)], axis=1)


def test_learners_without_adapted_parameters(drawn, tmp_path):
    classifier = paddle_maml.load("5way-1shot")
    classifier.learner = Nearest(classifier.learner.net)
    task = classifier.adapt(drawn[:, 0], LABELS)
    assert task.predict(drawn[:, 0]).labels == tuple(LABELS)
    with pytest.raises(UserError, match="no network of its own that could be exported: take weights of maml"):
        task.export(tmp_path / "x")
    with pytest.raises(UserError, match="steps is 2, but a Nearest has no inner steps: leave it out"):
        classifier.adapt(drawn[:, 0], LABELS, steps=2)

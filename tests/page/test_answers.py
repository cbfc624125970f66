"""From sketches to answers, without a page."""

import base64
import io

import numpy as np
import paddle
import pytest
from characters import CHARACTERS, changed, sketch
from drawn import drawings
from PIL import Image

import paddle_maml
from paddle_maml.errors import UserError
from paddle_maml.learners.prototypical import PrototypicalLearner
from paddle_maml.networks.conv4 import Conv4
from paddle_maml.page import markup
from paddle_maml.page.answers import LINE, SKETCH, answer, places, read_sketch

NAMES = list(CHARACTERS)
BLANK = sketch([])
EXAMPLES = [sketch(CHARACTERS[name]) for name in NAMES]
ANOTHER_HAND = {"shift": (0.04, -0.03), "scale": 0.9, "turn": 6.0}


@pytest.fixture(scope="module")
def classifier():
    return paddle_maml.load("5way-1shot")


def new(name):
    return sketch(changed(CHARACTERS[name], **ANOTHER_HAND))


@pytest.mark.parametrize("name", NAMES)
def test_clear_cases(classifier, name):
    given = answer(classifier, [*EXAMPLES, new(name)])
    assert given.characters == (1, 2, 3, 4, 5) and given.character == NAMES.index(name) + 1
    assert given.probabilities.max() > 0.9


def test_how_the_answer_changes(classifier):
    given = answer(classifier, [*EXAMPLES, new("circle")])
    assert [len(row) for row in given.by_example] == [2, 3, 4, 5] and given.steps == 1
    assert [len(row) for row in given.by_step] == [5] * 6
    for row in (*given.by_example, *given.by_step):
        np.testing.assert_allclose(row.sum(), 1)
    np.testing.assert_array_equal(given.by_example[-1], given.probabilities)
    np.testing.assert_array_equal(given.by_step[given.steps], given.probabilities)
    # The same as from the library, with the examples and the steps that the row stands for.
    first = classifier.adapt(EXAMPLES[:3], NAMES[:3])
    np.testing.assert_allclose(given.by_example[1], first.predict(new("circle")).probabilities[0], atol=1e-6)
    before = classifier.adapt(EXAMPLES, NAMES, steps=0)
    np.testing.assert_allclose(given.by_step[0], before.predict(new("circle")).probabilities[0], atol=1e-6)
    assert given.by_step[0].max() < 0.6 < given.by_step[1].max()


def test_places_may_stay_empty(classifier):
    given = answer(classifier, [BLANK, EXAMPLES[1], BLANK, EXAMPLES[3], BLANK, new("stairs")])
    assert given.characters == (2, 4) and given.character == 4
    assert [len(row) for row in given.by_example] == [2]


def test_other_weights():
    perceptron = answer(paddle_maml.load("mlp-5way-1shot"), [*EXAMPLES, new("cross")])
    assert len(perceptron.by_step) == max(perceptron.steps, 5) + 1
    assert places(paddle_maml.load("20way-1shot")) == 5
    few = paddle_maml.load("5way-1shot")
    few.n_way = 3
    assert places(few) == 3


def test_lines_are_as_thick_as_they_should_be(classifier):
    """Of 100 characters by other hands all are told with the page's lines, and not with thinner ones."""
    rng = np.random.default_rng(0)
    hands = [
        {"shift": rng.uniform(-0.06, 0.06, 2), "scale": rng.uniform(0.8, 1.1), "turn": rng.uniform(-10, 10)}
        for _ in range(20)
    ]
    right = []
    for line in (LINE, LINE // 2):
        task = classifier.adapt([sketch(CHARACTERS[name], line) for name in NAMES], NAMES, ink="dark")
        asked = [(name, sketch(changed(CHARACTERS[name], **hand), line)) for name in NAMES for hand in hands]
        labels = task.predict([one for _, one in asked]).labels
        right.append(sum(label == name for label, (name, _) in zip(labels, asked)))
    print(f"right of 100: {right[0]}, with half as thick lines {right[1]}")
    assert right[0] == 100 and right[1] < 90


def test_a_learner_without_inner_steps(tmp_path):
    path = tmp_path / "x.pdparams"
    paddle.save(PrototypicalLearner(Conv4(width=4)).state_dict(), str(path))
    embeds = paddle_maml.load(path, learner="prototypical", width=4)
    assert places(embeds) == 5
    given = answer(embeds, [*EXAMPLES, new("bar")])
    assert (given.by_step, given.steps) == ([], None) and len(given.by_example) == 4


@pytest.mark.parametrize(
    "sketches, message",
    [
        ([BLANK] * 5 + [new("bar")], "at least two characters: there are 0"),
        ([EXAMPLES[0]] + [BLANK] * 4 + [new("bar")], "at least two characters: there is 1"),
        ([*EXAMPLES, BLANK], "The new character is empty: draw it"),
        ([*EXAMPLES, np.zeros_like(BLANK)], "The new character is mostly black"),
        ([*EXAMPLES, sketch([[(0.5, 0.5), (0.53, 0.5)]])], "The new character is only a spot"),
        ([EXAMPLES[0], np.zeros_like(BLANK), *EXAMPLES[2:], new("bar")], "Example 2 is mostly black"),
    ],
)
def test_what_is_no_drawing(classifier, sketches, message):
    with pytest.raises(UserError, match=message):
        answer(classifier, sketches)


def test_every_drawn_character_is_a_drawing(classifier):
    drawn = [np.asarray(Image.fromarray(one).resize((SKETCH, SKETCH))) for one in drawings(20)[:, 0]]
    for start in range(0, 20, 5):
        assert answer(classifier, [*drawn[start : start + 5], drawn[start]]).character == 1


def data_url(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_sketch_is_read():
    # A canvas is transparent where nothing was drawn.
    canvas = Image.new("RGBA", (SKETCH, SKETCH), (0, 0, 0, 0))
    canvas.putalpha(Image.fromarray(255 - EXAMPLES[0]))
    np.testing.assert_array_equal(read_sketch(data_url(canvas)), EXAMPLES[0])


NOISE = np.random.default_rng(0).integers(0, 256, (SKETCH, SKETCH, 4), np.uint8)
GOOD = data_url(Image.fromarray(NOISE))


def test_the_longest_sketch_is_read():
    assert read_sketch(GOOD).shape == (SKETCH, SKETCH)


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "data:image/png;base64,",
        "data:image/png;base64,%%%",
        "data:image/png;base64,é",
        "https://example.org/x.png",
        GOOD[: len(GOOD) // 2],
        GOOD[:100],
        GOOD + "A" * 400_000,
        data_url(Image.new("L", (SKETCH + 1, SKETCH))),
        data_url(Image.new("L", (9_000, 14_000))),  # a bomb that is short
        data_url(Image.new("L", (SKETCH, SKETCH)), "GIF"),
        data_url(Image.fromarray(NOISE[..., 0])).replace("A", "B"),
    ],
    ids=lambda url: str(url)[:30] + f"({len(str(url))})",
)
def test_what_is_no_sketch(url):
    with pytest.raises(UserError, match="That is no sketch: send a PNG of 210x210 pixels"):
        read_sketch(url)


def test_what_the_page_says(classifier):
    sketches = [EXAMPLES[0], BLANK, EXAMPLES[2], BLANK, BLANK, new("bar")]
    given = answer(classifier, sketches)
    said = markup.answered(given, sketches)
    assert f"character <b>3</b>, with probability {given.probabilities[1]:.0%}" in said
    assert said.count("<table>") == 2 and said.count("maml-chosen") == 2
    assert said.count("<td style") == 2 * (1 + 6) and "<th>1, 3</th>" in said
    none = markup.answered(given._replace(by_step=[], steps=None), sketches)
    assert none.count("<table>") == 1 and "inner step" not in none
    assert "&lt;b&gt;" in markup.refusal("<b>")
    assert markup.pads(3).count("<canvas") == 4

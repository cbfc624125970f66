"""An adapted task as a program that runs without this library."""

import subprocess
import sys

import numpy as np
import paddle
import pytest
from drawn import drawings
from paddle import nn

import paddle_maml
from paddle_maml import MAML, MLP, MetaLearner, twice_differentiable
from paddle_maml.data.preprocessing import resize, to_network_input
from paddle_maml.errors import UserError
from paddle_maml.inference.export import export

# What another program does; it cannot import this library.
STRANGER = """
import sys
sys.modules["paddle_maml"] = None
import numpy, os, paddle
path, images, target = sys.argv[1:]
images = numpy.load(images)
loaded = paddle.jit.load(path)
loaded.eval()
first = loaded(paddle.to_tensor(images)).numpy()
program = next(path + end for end in (".pdmodel", ".json") if os.path.exists(path + end))
predictor = paddle.inference.create_predictor(paddle.inference.Config(program, path + ".pdiparams"))
handle = predictor.get_input_handle(predictor.get_input_names()[0])
handle.reshape(images.shape)
handle.copy_from_cpu(images)
predictor.run()
second = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
numpy.save(target, numpy.stack([first, second]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["5way-1shot", "mlp-5way-1shot"])
def test_a_program_without_this_library_predicts_the_same(tmp_path, name):
    images = drawings()
    task = paddle_maml.load(name).adapt(images[:4, :2].reshape(-1, 105, 105), list("aabbccdd"))
    queries = images[:4, 10:].reshape(-1, 105, 105)
    files = task.export(tmp_path / "made" / "task")
    assert all((tmp_path / "made" / file).is_file() for file in files)
    assert (tmp_path / "made" / "task.classes.txt").read_text() == "a\nb\nc\nd\n"
    np.save(tmp_path / "x.npy", to_network_input(resize(queries, "competition", 28))[:, None])
    arguments = [tmp_path / "made" / "task", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run([sys.executable, "-c", STRANGER, *map(str, arguments)], check=True, cwd=tmp_path)
    expected = task.predict(queries).probabilities
    for found in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_onnx_gives_the_same(tmp_path):
    """On demand: where paddle2onnx and onnxruntime are installed."""
    paddle2onnx = pytest.importorskip("paddle2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    images = drawings()
    task = paddle_maml.load("5way-1shot").adapt(images[:, 0], list("abcde"))
    program, weights = (
        next(file for file in task.export(tmp_path / "task") if file.endswith(ends))
        for ends in ((".pdmodel", ".json"), ".pdiparams")
    )
    target = str(tmp_path / "task.onnx")
    paddle2onnx.export(program, weights, target)
    queries = images[:, 10:12].reshape(-1, 105, 105)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    x = to_network_input(resize(queries, "competition", 28))[:, None]
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, task.predict(queries).probabilities, atol=1e-4)


def own_network():
    layers = nn.Conv2D(1, 4, 3, stride=2), nn.BatchNorm2D(4), nn.GELU(), nn.MaxPool2D(4), nn.Flatten()
    return twice_differentiable(nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(36, 5)))


@pytest.mark.parametrize(
    "net",
    [
        lambda: MAML(5, width=4),
        lambda: MAML(5, width=4, architecture="stride"),
        lambda: MLP(784),
        own_network,
    ],
    ids=["conv4", "stride", "mlp", "own"],
)
def test_frozen_networks_give_the_same(net, tmp_path):
    paddle.seed(1)
    learner = MetaLearner(net(), inner_steps=2)
    for part in learner.net.sublayers():
        if isinstance(part, nn.Dropout):
            part.eval()
    generator = np.random.default_rng(0)
    x, y, queries = (
        generator.normal(size=(6, 1, 28, 28)).astype("float32"),
        np.array([0, 1, 2, 3, 4, 4]),
        generator.normal(size=(9, 1, 28, 28)).astype("float32"),
    )
    before = {name: value.numpy().copy() for name, value in learner.state_dict().items()}
    params = learner.adapt(x, y)
    expected = nn.functional.softmax(learner.outputs(queries, params, x)[:, :3]).numpy()
    export(learner, params, x, ("a", "b", "c"), str(tmp_path / "task"))
    found = paddle.jit.load(str(tmp_path / "task"))(paddle.to_tensor(queries)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for name, value in learner.state_dict().items():
        assert np.array_equal(value.numpy(), before[name])


@pytest.mark.parametrize("net", [MAML, lambda n: MLP(784, n_outputs=n)], ids=["conv4", "mlp"])
def test_a_network_on_its_own_is_saved(net, tmp_path):
    """With the batch statistics of the images passed together, as it computes."""
    layer = net(5)
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(7, 1, 28, 28)).astype("float32"))
    specification = [paddle.static.InputSpec([None, 1, 28, 28], "float32")]
    paddle.jit.save(layer, str(tmp_path / "net"), input_spec=specification)
    loaded = paddle.jit.load(str(tmp_path / "net"))
    loaded.eval()
    np.testing.assert_allclose(loaded(images).numpy(), layer(images).numpy(), atol=2e-4)


def test_a_program_takes_one_task(tmp_path):
    specification = [paddle.static.InputSpec([2, None, 1, 28, 28], "float32")]
    with pytest.raises(ValueError, match="a program takes images of one task"):
        paddle.jit.save(MAML(5), str(tmp_path / "net"), input_spec=specification)


def test_what_paddle_cannot_save_is_said(tmp_path):
    class Odd(nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(784, 5)

        def forward(self, x):
            if not paddle.in_dynamic_mode():
                raise TypeError("no program can do this")
            return self.linear(x.flatten(1))

    learner = MetaLearner(Odd(), inner_steps=1, order=1)
    x = np.zeros((2, 1, 28, 28), "float32")
    with pytest.raises(UserError, match="Paddle cannot save the network Odd"):
        export(learner, learner.adapt(x, np.array([0, 1])), x, ("a", "b"), str(tmp_path / "task"))
    assert not list(tmp_path.iterdir())

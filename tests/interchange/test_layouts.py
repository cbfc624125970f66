"""Weights that go to another framework and back give the same logits."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from interchange_export import make
from tiny_run import ROOT

from paddle_maml import MAML, MLP
from paddle_maml.commands import cli
from paddle_maml.engine.weights import load_weights
from paddle_maml.errors import UserError
from paddle_maml.interchange.format import read_export
from paddle_maml.interchange.layouts import LAYOUTS, read_safetensors, read_weights
from paddle_maml.learners.maml import MetaLearner

SHELF = Path(ROOT, "paddle_maml", "pretrained")
IMAGES = np.random.RandomState(0).standard_normal((6, 1, 35, 35)).astype(np.float32)


def network(image_size=35):
    paddle.seed(5)
    net = MAML(n_way=3, width=4, image_size=image_size)
    for parameter in net.parameters():  # none of them zero or one
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    return net


@pytest.fixture
def saved(tmp_path):
    """A network with 2x2 pixels in its last map, and its file."""
    net = network()
    paddle.save(net.state_dict(), str(tmp_path / "net.pdparams"))
    return net, tmp_path / "net.pdparams"


def convert(source, target, of, to):
    assert cli.main(["interchange", "convert", str(source), str(target), "--from", of, "--to", to]) == 0
    return target


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "paddle"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_there_and_back_gives_the_same_logits(saved, tmp_path, layout, kind):
    net, path = saved
    there = convert(path, tmp_path / f"there.{kind}", "paddle", layout)
    back = convert(there, tmp_path / "back.pdparams", layout, "paddle")
    other = network()
    for parameter in other.parameters():
        parameter.set_value(parameter * 0)
    load_weights(other, str(back))
    np.testing.assert_array_equal(
        other(paddle.to_tensor(IMAGES)).numpy(), net(paddle.to_tensor(IMAGES)).numpy()
    )


def test_the_competitions_arrays_are_its_order(saved, tmp_path):
    net, path = saved
    there = convert(path, tmp_path / "there.npz", "paddle", "competition")
    other = MAML(n_way=3, width=4, image_size=35)
    load_weights(other, str(there))  # by the reader of what it published
    for a, b in zip(other.parameters(), net.parameters()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_pytorch_layers_take_a_state_dict_and_give_equal_logits(saved, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net, path = saved
    there = convert(path, tmp_path / "there.safetensors", "paddle", "pytorch")

    class Block(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = torch.nn.Conv2d(channels, 4, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(4, track_running_stats=False)

        def forward(self, x):
            return torch.nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)

    layers = torch.nn.Module()
    for number in range(1, 5):
        layers.add_module(f"block{number}", Block(1 if number == 1 else 4))
    layers.linear = torch.nn.Linear(16, 3)
    layers.load_state_dict({name: torch.tensor(a) for name, a in read_safetensors(there).items()})
    x = torch.tensor(IMAGES)
    for number in range(1, 5):
        x = getattr(layers, f"block{number}")(x)
    logits = layers.linear(x.flatten(1)).detach().numpy()
    np.testing.assert_allclose(logits, net(paddle.to_tensor(IMAGES)).numpy(), rtol=1e-4, atol=1e-5)


IN_JAX = """
import sys
import jax, numpy as np

arrays, x = np.load(sys.argv[1]), np.load(sys.argv[2]).transpose(0, 2, 3, 1)
for block in ("block1", "block2", "block3", "block4"):
    kernel, layout = arrays[block + "/conv/kernel"], ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    x = jax.nn.standardize(x + arrays[block + "/conv/bias"], axis=(0, 1, 2), epsilon=1e-5)
    x = jax.nn.relu(x * arrays[block + "/norm/scale"] + arrays[block + "/norm/bias"])
    x = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
np.save(sys.argv[3], x.reshape(len(x), -1) @ arrays["linear/kernel"] + arrays["linear/bias"])
"""


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_channels_last_as_jax_has_them_gives_equal_logits(saved, tmp_path):
    """In a process of its own: JAX's threads would stay, and other tests fork."""
    net, path = saved
    arrays = convert(path, tmp_path / "there.npz", "paddle", "jax")
    images, logits = tmp_path / "images.npy", tmp_path / "logits.npy"
    np.save(images, IMAGES)
    subprocess.run([sys.executable, "-c", IN_JAX, *map(str, (arrays, images, logits))], check=True)
    np.testing.assert_allclose(np.load(logits), net(paddle.to_tensor(IMAGES)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["pytorch", "jax"])
def test_perceptrons_and_learned_rates_go_along(tmp_path, layout):
    path = SHELF / "mlp-5way-1shot.pdparams"
    there = convert(path, tmp_path / "there.safetensors", "paddle", layout)
    back = convert(there, tmp_path / "back.pdparams", layout, "paddle")
    first, second = (read_weights(file, "paddle") for file in (path, back))
    assert set(first) == set(second) and "inner_rates" in first
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    learner = MetaLearner(MLP(784), inner_steps=first["inner_rates"].shape[0], learn_inner_lr=True)
    load_weights(learner, str(back))


def test_safetensors_is_what_its_own_library_reads_and_writes(saved, tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    _, path = saved
    there = convert(path, tmp_path / "there.safetensors", "paddle", "pytorch")
    ours = read_safetensors(there)
    for arrays in (library.load_file(there), ours):
        assert set(arrays) == set(ours)
        for name in ours:
            np.testing.assert_array_equal(arrays[name], ours[name])
    library.save_file({"a": np.arange(3.0)}, tmp_path / "a.safetensors", metadata={"format": "np"})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "a.safetensors")["a"], np.arange(3.0))


def damaged(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}).encode(),
        json.dumps({"a": 3}).encode(),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header):
    path = damaged(tmp_path, len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(UserError, match="is damaged or no safetensors"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere.npz", "a.npz"], "There is no file of weights"),
        (["net.pdparams", "a.txt"], "is written as .safetensors or .npz"),
        (["net.pdparams", "a.npz", "--to", "paddle"], "is written as .pdparams"),
        (["net.pdparams", "a.npz", "--from", "jax"], "is not in the layout jax"),
        (["net.pdparams", "a.npz", "--from", "competition"], "is not in the layout competition"),
        (["mlp.pdparams", "a.npz", "--to", "competition"], "for the four blocks alone"),
    ],
)
def test_mistakes_are_one_sentence(saved, tmp_path, monkeypatch, capfd, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlp.pdparams").write_bytes((SHELF / "mlp-5way-1shot.pdparams").read_bytes())
    assert cli.main(["interchange", "convert", *arguments]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors


@pytest.mark.parametrize("name", ["5way-1shot", pytest.param("mlp-5way-1shot", marks=pytest.mark.slow)])
def test_shipped_weights_work_in_pytorch_without_paddle(tmp_path, name):
    """On drawn characters, which they have never seen: the figures are those of this library."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder = make(
        tmp_path / "export", 1, [], n_way=5, k_query=1, test_k_query=15, test_episodes=20, rotations=False
    )
    reader = Path(ROOT, "docs", "readers", "pretrained_pytorch.py")
    code = (
        "import sys, runpy; sys.modules['paddle'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, reader, SHELF / f"{name}.pdparams", folder]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert f"{expected_accuracy(folder, name):.2f} % +- " in result.stdout


def expected_accuracy(folder, name):
    """This library's accuracy on the test episodes of an export, in per cent."""
    rates = read_weights(SHELF / f"{name}.pdparams", "paddle")["inner_rates"]
    net = MLP(784) if name.startswith("mlp") else MAML(5)
    learner = MetaLearner(net, inner_steps=len(rates), learn_inner_lr=True)
    load_weights(learner, str(SHELF / f"{name}.pdparams"))
    arrays = read_export(folder).episode_arrays("test", range(20))
    return 100 * learner.finetune(*arrays, steps=len(rates))[0][:, -1].mean()

"""Networks of converted layers: outputs as stock, second derivatives as PyTorch's and as differences say."""

import copy
import pickle

import numpy as np
import paddle
import pytest
from networks.pairs import N_OUTPUTS, PAIRS, from_torch, inputs, to_torch, trainable
from paddle import nn

from paddle_maml.kernels import elementwise
from paddle_maml.networks.twice_differentiable import REPLACEMENTS, TESTED, twice_differentiable

COUNT = 10
LABELS = np.arange(COUNT) % N_OUTPUTS


def loss_of(network, x, weights=None):
    """Mean cross-entropy."""
    targets = paddle.nn.functional.one_hot(paddle.to_tensor(LABELS), N_OUTPUTS)
    return -(elementwise.log_softmax(network(x)) * targets).sum(-1).mean()


def directions_for(tensors, seed=4):
    random = np.random.RandomState(seed)
    return [random.standard_normal(tensor.shape) for tensor in tensors]


def hessian_product(loss, tensors, directions):
    """Gradient of a loss and the Hessian times the directions, as arrays."""
    gradients = paddle.grad(loss, tensors, create_graph=True)
    products = paddle.grad(gradients, tensors, [paddle.to_tensor(d) for d in directions], allow_unused=True)
    # Where the loss is linear there is no second derivative: None.
    return [g.numpy() for g in gradients], [
        np.zeros(t.shape) if p is None else p.numpy() for t, p in zip(tensors, products)
    ]


def differences(gradient, tensors, directions, step=1e-7):
    """(g(theta + e v) - g(theta - e v)) / 2e; the tensors are what they were afterwards. A small
    step, because a maximum or a ReLU may flip between the ends."""
    before, ends = [tensor.numpy() for tensor in tensors], []
    for sign in (1, -1):
        for tensor, value, direction in zip(tensors, before, directions):
            tensor.set_value(value + sign * step * direction)
        ends.append(gradient())
    for tensor, value in zip(tensors, before):
        tensor.set_value(value)
    return [(above - below) / (2 * step) for above, below in zip(*ends)]


def assert_close(got, expected, tolerance, floor=1e-5):
    """Relative error of each array. A shift of an attention's keys changes nothing: the derivative by their
    bias is rounding alone, and held against all the others."""
    whole = np.sqrt(sum((e * e).sum() for e in expected))
    assert whole > 1e-3
    for ours, theirs in zip(got, expected):
        assert np.linalg.norm(ours - theirs) <= tolerance * max(np.linalg.norm(theirs), floor * whole)


# ----------------------------------------------------------------------------------------------------
# whole networks


def our_side(name):
    network = PAIRS[name][0]()
    x = paddle.to_tensor(inputs(name, COUNT))
    x.stop_gradient = not x.is_floating_point()
    tensors = list(trainable(network).values()) + ([] if x.stop_gradient else [x])
    return network, x, tensors


@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_are_those_of_pytorch(float64, name):
    torch = pytest.importorskip("torch")
    stock, x, tensors = our_side(name)
    theirs = PAIRS[name][1](stock)
    network = twice_differentiable(stock)
    parameters = len(trainable(network))
    directions = directions_for(tensors)
    loss = loss_of(network, x)
    gradients, products = hessian_product(loss, tensors, directions)

    leaves = dict(theirs.named_parameters())
    vectors = to_torch(network, directions[:parameters])
    torch_x = torch.tensor(x.numpy())
    if x.is_floating_point():
        leaves["input"], vectors["input"] = torch_x.requires_grad_(), directions[-1]
    torch_loss = torch.nn.functional.cross_entropy(theirs(torch_x), torch.tensor(LABELS))
    first = torch.autograd.grad(torch_loss, list(leaves.values()), create_graph=True)
    second = torch.autograd.grad(first, list(leaves.values()), [torch.tensor(vectors[n]) for n in leaves])
    assert loss.item() == pytest.approx(torch_loss.item(), rel=1e-12)
    for ours, expected in ((gradients, first), (products, second)):
        by_name = {n: e.detach().numpy() for n, e in zip(leaves, expected)}
        arrays = from_torch(network, by_name) + ([by_name["input"]] if "input" in by_name else [])
        assert len(arrays) == len(ours)
        assert_close(ours, arrays, 1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_second_derivatives_are_those_of_differences(float64, name):
    network, x, tensors = our_side(name)
    twice_differentiable(network)
    directions = directions_for(tensors)
    _, products = hessian_product(loss_of(network, x), tensors, directions)

    def gradient():
        return [g.numpy() for g in paddle.grad(loss_of(network, x), tensors)]

    assert_close(products, differences(gradient, tensors, directions), 1e-6, floor=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient_are_those_of_the_stock_network(float64, name):
    network, x, tensors = our_side(name)
    stock = loss_of(network, x)
    expected = [g.numpy() for g in paddle.grad(stock, tensors)]
    ours = loss_of(twice_differentiable(network), x)
    assert ours.item() == pytest.approx(stock.item(), rel=1e-10)
    assert_close([g.numpy() for g in paddle.grad(ours, tensors)], expected, 1e-9)


def test_stock_layers_refuse_what_is_converted(float64):
    """Else there would be nothing to convert, and the tests above would say nothing."""
    network, x, tensors = our_side("normalised")
    with pytest.raises(RuntimeError):
        hessian_product(loss_of(network, x), tensors, directions_for(tensors))


# ----------------------------------------------------------------------------------------------------
# each class: (how to build it, shape of the input); None: held in a network above

IMAGE, ROWS, SEQUENCE = (4, 6, 5, 5), (4, 6), (4, 6, 7)


def layer_norm_without_bias():
    return nn.LayerNorm([5, 5], bias_attr=False)


def encoder(**options):
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, **options)


class Attending(nn.Layer):
    """The options of an attention: a mask, other keys, weights that are asked for."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiHeadAttention(6, 3, kdim=7, need_weights=True)

    def forward(self, x):
        mask = paddle.ones([6, 6]).tril().astype("bool")
        out, weights = self.attention(x[:, :, :6], x, x[:, :, 1:], mask)
        return out.sum(-1) + (weights * weights).sum([1, 3])


class Decoding(nn.Layer):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, activation="gelu")
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x):
        return self.decoder(x[:, :3, :6], x[:, 3:, 1:])


class Encoding(nn.Layer):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder(activation="gelu", normalize_before=True), 2)

    def forward(self, x):
        return self.encoder(x[:, :, :6])


class Stepping(nn.Layer):
    """A recurrent network with lengths, from states of its own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        outputs, states = self.network(x, None, paddle.to_tensor([6, 1, 3, 5]))
        for state in paddle.utils.flatten(states):
            outputs = outputs + state.sum()
        return outputs


class Embedded(nn.Layer):
    def __init__(self):
        super().__init__()
        self.layers = nn.LayerList([nn.Embedding(5, 3, padding_idx=-1), nn.Identity()])
        weight = self.layers[0].weight
        weight.set_value(directions_for([weight])[0].astype(weight.numpy().dtype))

    def forward(self, x):
        tokens = paddle.to_tensor([[0, 1, 1, 4], [4, 3, 0, 1]])
        return self.layers[1](self.layers[0](tokens)) * x.sum()


ACTIVATIONS = [
    "ReLU",
    "LeakyReLU",
    "ELU",
    "CELU",
    "Tanh",
    "Sigmoid",
    "Silu",
    "Softplus",
    "ReLU6",
    "SELU",
    "Swish",
]
ACTIVATIONS += ["Hardswish", "Hardsigmoid", "Hardtanh", "Softsign", "LogSigmoid", "Mish"]

CASES = {
    "BatchNorm1D": (lambda: nn.BatchNorm1D(6), ROWS),
    "BatchNorm1D of sequences": (lambda: nn.BatchNorm1D(6), SEQUENCE),
    "BatchNorm1D, channels last": (lambda: nn.BatchNorm1D(7, data_format="NLC"), SEQUENCE),
    "BatchNorm2D": (lambda: nn.BatchNorm2D(6, momentum=0.7, epsilon=1e-3), IMAGE),
    "BatchNorm2D without weights": (lambda: nn.BatchNorm2D(6, weight_attr=False, bias_attr=False), IMAGE),
    "BatchNorm2D, channels last": (lambda: nn.BatchNorm2D(5, data_format="NHWC"), IMAGE),
    "BatchNorm2D, global": (lambda: nn.BatchNorm2D(6, use_global_stats=True), IMAGE),
    "BatchNorm2D, never global": (lambda: nn.BatchNorm2D(6, use_global_stats=False), IMAGE),
    "BatchNorm3D": (lambda: nn.BatchNorm3D(3), (2, 3, 2, 3, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(7), SEQUENCE),
    "LayerNorm of two axes": (layer_norm_without_bias, IMAGE),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), IMAGE),
    "GroupNorm of rows": (lambda: nn.GroupNorm(2, 6), ROWS),
    "GroupNorm without weights": (lambda: nn.GroupNorm(2, 6, weight_attr=False, bias_attr=False), IMAGE),
    "InstanceNorm1D": (lambda: nn.InstanceNorm1D(6), SEQUENCE),
    "InstanceNorm2D": (lambda: nn.InstanceNorm2D(6), IMAGE),
    "InstanceNorm2D without": (lambda: nn.InstanceNorm2D(6, weight_attr=False, bias_attr=False), IMAGE),
    "InstanceNorm3D": (lambda: nn.InstanceNorm3D(3), (2, 3, 2, 3, 3)),
    "MaxPool1D": (lambda: nn.MaxPool1D(3, 2, 1), SEQUENCE),
    "MaxPool2D": (lambda: nn.MaxPool2D(2), IMAGE),
    "MaxPool2D of all kinds": (lambda: nn.MaxPool2D((3, 2), (2, 1), [1, 0], ceil_mode=True), IMAGE),
    "MaxPool2D, channels last": (lambda: nn.MaxPool2D(2, data_format="NHWC"), IMAGE),
    "AdaptiveMaxPool1D": (lambda: nn.AdaptiveMaxPool1D(3), SEQUENCE),
    "AdaptiveMaxPool2D": (lambda: nn.AdaptiveMaxPool2D((2, None)), IMAGE),
    "Embedding": (Embedded, (3,)),
    "Flatten": (lambda: nn.Flatten(1, 2), IMAGE),
    "Dropout": (lambda: nn.Dropout(0.4), IMAGE),
    "Dropout by axis": (lambda: nn.Dropout(0.4, axis=[0, 1], mode="downscale_in_infer"), IMAGE),
    "Dropout2D": (lambda: nn.Dropout2D(0.4), IMAGE),
    "Dropout3D": (lambda: nn.Dropout3D(0.4), (2, 3, 2, 3, 3)),
    "Softmax": (lambda: nn.Softmax(1), IMAGE),
    "LogSoftmax": (lambda: nn.LogSoftmax(), ROWS),
    "GELU": (lambda: nn.GELU(), ROWS),
    "GELU by tanh": (lambda: nn.GELU(approximate=True), ROWS),
    "MultiHeadAttention": (Attending, SEQUENCE),
    "TransformerEncoder": (Encoding, SEQUENCE),
    "TransformerEncoderLayer": (lambda: encoder(activation="relu"), (2, 4, 6)),
    "TransformerDecoder": (Decoding, SEQUENCE),
    "RNN": (lambda: Stepping(nn.RNN(nn.SimpleRNNCell(7, 5))), SEQUENCE),
    "RNN, reversed": (lambda: Stepping(nn.RNN(nn.LSTMCell(7, 5), is_reverse=True)), SEQUENCE),
    "RNN, time first": (lambda: Stepping(nn.RNN(nn.GRUCell(7, 5), time_major=True)), (6, 4, 7)),
    "BiRNN": (lambda: Stepping(nn.BiRNN(nn.LSTMCell(7, 5), nn.LSTMCell(7, 5))), SEQUENCE),
    "Conv1D": (lambda: nn.Conv1D(6, 4, 3, padding=1), SEQUENCE),
    "Conv2D": (lambda: nn.Conv2D(6, 4, 3, stride=2, padding="SAME"), IMAGE),
    "Conv2D of each channel": (lambda: nn.Conv2D(6, 12, 3, groups=6, padding=1), IMAGE),
    "Conv2D, channels last": (lambda: nn.Conv2D(5, 5, 3, groups=5, data_format="NHWC"), (2, 4, 4, 5)),
    "Conv2D with reflection": (lambda: nn.Conv2D(6, 6, 3, 1, 1, padding_mode="reflect", groups=6), IMAGE),
    "Conv3D": (lambda: nn.Conv3D(2, 3, 2), (2, 2, 3, 3, 3)),
    "AvgPool1D": (lambda: nn.AvgPool1D(2), SEQUENCE),
    "AvgPool2D": (lambda: nn.AvgPool2D(3, 2, 1), IMAGE),
    "AdaptiveAvgPool1D": (lambda: nn.AdaptiveAvgPool1D(3), SEQUENCE),
    "AdaptiveAvgPool2D": (lambda: nn.AdaptiveAvgPool2D(3), IMAGE),
    "ZeroPad2D": (lambda: nn.ZeroPad2D(1), IMAGE),
    "Linear": (lambda: nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 2)), SEQUENCE),
    "PReLU": (lambda: nn.PReLU(6), IMAGE),
    "PReLU of one": (lambda: nn.PReLU(), IMAGE),
    **{name: (getattr(nn, name), ROWS) for name in ACTIVATIONS},
}


def build(name):
    make, shape = CASES[name]
    paddle.seed(2)
    layer = make()
    parameters = list(trainable(layer).values())
    for parameter, offset in zip(parameters, directions_for(parameters, seed=8)):
        if parameter.ndim == 1:
            parameter.set_value(parameter.numpy() + 0.3 * offset)
    [x] = directions_for([np.zeros(shape)], seed=11)
    x = paddle.to_tensor(2.0 * x)
    x.stop_gradient = False
    return layer, x


def weighted(layer, x):
    """From the same seed a scalar of the outputs; its second derivative by each output is not zero."""
    paddle.seed(5)
    output = layer(x)
    [weights] = directions_for([output], seed=9)
    return ((output * output + output) * paddle.to_tensor(weights)).sum()


def test_every_class_that_is_called_tested_is():
    classes = set()
    for make, _ in CASES.values():
        classes |= {type(layer) for layer in twice_differentiable(make()).sublayers(include_self=True)}
    assert classes >= TESTED
    assert set(REPLACEMENTS.values()) <= TESTED


@pytest.mark.parametrize("name", CASES)
def test_a_layer_computes_what_it_did(float64, name):
    layer, x = build(name)
    converted = twice_differentiable(copy.deepcopy(layer))
    for mode in ("train", "train", "eval"):
        getattr(layer, mode)()
        getattr(converted, mode)()
        results = []
        for network in (layer, converted):
            paddle.seed(6)
            results.append(network(x).numpy())
        # Stock normalisation rounds its epsilon to single precision.
        np.testing.assert_allclose(results[1], results[0], rtol=1e-9, atol=1e-10)
        # Running statistics among them.
        before, after = layer.state_dict(), converted.state_dict()
        assert list(before) == list(after)
        for key in before:
            np.testing.assert_allclose(after[key].numpy(), before[key].numpy(), rtol=1e-12, atol=1e-14)


# By the input, and as a network's first layer, whose input is a constant.
@pytest.mark.parametrize("constant", [False, True], ids=["inner", "first"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_second_derivative_of_a_layer(float64, name, training, constant):
    layer, x = build(name)
    twice_differentiable(layer)
    layer.train() if training else layer.eval()
    x.stop_gradient = constant
    tensors = [*trainable(layer).values(), *([] if constant else [x])]
    if not tensors:
        return  # a layer without parameters does not matter there
    directions = directions_for(tensors)
    _, products = hessian_product(weighted(layer, x), tensors, directions)

    def gradient():
        return [g.numpy() for g in paddle.grad(weighted(layer, x), tensors)]

    assert_close(products, differences(gradient, tensors, directions), 1e-6, floor=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_dtypes(dtype):
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        for name in ("convolutional", "normalised", "transformer"):
            network = twice_differentiable(PAIRS[name][0]())
            x = inputs(name, COUNT)
            x = paddle.to_tensor(x if x.dtype.kind == "i" else x.astype(dtype))
            loss = loss_of(network, x)
            assert loss.dtype == network.parameters()[0].dtype
            _, products = hessian_product(
                loss,
                list(trainable(network).values()),
                [d.astype(dtype) for d in directions_for(trainable(network).values())],
            )
            assert all(np.isfinite(product).all() and product.dtype == dtype for product in products)
    finally:
        paddle.set_default_dtype(before)


# ----------------------------------------------------------------------------------------------------
# what the conversion leaves


def test_the_layer_stays_the_same_object():
    network = PAIRS["convolutional"][0]()
    network.eval()
    parameters, state = network.parameters(), network.state_dict()
    calls = []
    network[1].register_forward_post_hook(lambda *_: calls.append("hook"))
    converted = twice_differentiable(network)
    assert converted is network
    assert [id(p) for p in converted.parameters()] == [id(p) for p in parameters]
    assert list(converted.state_dict()) == list(state)
    assert not any(layer.training for layer in converted.sublayers(include_self=True))
    assert isinstance(converted[1], nn.BatchNorm2D)
    converted(paddle.to_tensor(inputs("convolutional", 2).astype("float32")))
    assert calls == ["hook"]


def test_converting_twice_is_converting_once():
    network = twice_differentiable(PAIRS["normalised"][0]())
    classes = [type(layer) for layer in network.sublayers(include_self=True)]
    twice_differentiable(network)
    assert [type(layer) for layer in network.sublayers(include_self=True)] == classes
    assert REPLACEMENTS[nn.GroupNorm] in classes


def test_a_layer_by_itself_is_converted():
    assert type(twice_differentiable(nn.MaxPool2D(2))) is REPLACEMENTS[nn.MaxPool2D]


def test_classes_of_the_user_and_fused_ones_are_left_alone():
    class Own(nn.LayerNorm):
        def forward(self, input):
            return input

    network = twice_differentiable(nn.Sequential(Own(3), nn.LSTM(3, 3), nn.Linear(3, 3)))
    assert [type(layer) for layer in network] == [Own, nn.LSTM, nn.Linear]
    assert not {Own, nn.LSTM, nn.GRU, nn.SimpleRNN} & TESTED


def test_a_shared_layer_is_converted_once():
    shared = nn.Softmax()
    network = twice_differentiable(nn.Sequential(shared, nn.Sequential(shared)))
    assert network[0] is network[1][0] is shared
    assert type(shared) is REPLACEMENTS[nn.Softmax]


def test_a_converted_class_can_be_found_by_its_name():
    for replacement in REPLACEMENTS.values():
        assert pickle.loads(pickle.dumps(replacement)) is replacement


def test_an_attribute_that_stands_in_is_given_back():
    layer = twice_differentiable(encoder(activation="gelu"))
    with pytest.raises(ValueError):
        layer(paddle.ones([1, 2, 5]))
    assert layer.activation is nn.functional.gelu


def test_a_mask_of_places_is_what_stock_returns():
    x = paddle.to_tensor(inputs("convolutional", 2))
    stock = nn.MaxPool2D(2, return_mask=True)
    expected = [t.numpy() for t in stock(x)]
    for ours, theirs in zip(twice_differentiable(stock)(x), expected):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_parameters_that_are_not_used(float64):
    network, x, tensors = our_side("normalised")
    twice_differentiable(network)
    other = paddle.to_tensor(np.ones(3))
    other.stop_gradient = False
    gradients = paddle.grad(loss_of(network, x), [*tensors, other], create_graph=True, allow_unused=True)
    assert gradients[-1] is None
    vectors = [paddle.to_tensor(d) for d in directions_for(tensors)]
    products = paddle.grad(gradients[:-1], [*tensors, other], vectors, allow_unused=True)
    assert products[-1] is None
    assert_close(
        [p.numpy() for p in products[:-1]],
        hessian_product(loss_of(network, x), tensors, directions_for(tensors))[1],
        1e-12,
    )


def test_the_gradient_by_some_parameters_alone(float64):
    """As a learner needs it that adapts only the last layer, or leaves the input alone."""
    network, x, tensors = our_side("convolutional")
    twice_differentiable(network)
    everything, _ = hessian_product(loss_of(network, x), tensors, directions_for(tensors))
    for chosen in ([0], [3], [len(tensors) - 1]):
        some = [tensors[place] for place in chosen]
        gradients = paddle.grad(loss_of(network, x), some, create_graph=True)
        assert_close([g.numpy() for g in gradients], [everything[place] for place in chosen], 1e-11)

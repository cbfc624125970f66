"""The same network in Paddle and in PyTorch, with the same weights: small ones of many kinds of layers.

    make_paddle, make_torch, input_shape, n_outputs = PAIRS[name]
    ours = make_paddle()            # stock Paddle layers, not yet converted
    theirs = make_torch(ours)       # PyTorch's, float64, with weights copied from ours
    x = inputs(name, 10)            # (10, *shape) float64, or integers where input_shape is (int, length)

Build them with Paddle's default dtype float64. Parameters go from one layout to the other with `to_torch` and
`from_torch`. PyTorch is imported only where a network of it is made.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

TOKENS = 11  # the vocabulary of networks with integer inputs, whose input_shape is (int, length)
N_OUTPUTS = 5


def inputs(name, count, seed=0):
    """A batch of inputs for the networks of that name, as an array."""
    shape, random = PAIRS[name][2], np.random.RandomState(seed)
    if shape[0] is int:
        return random.randint(0, TOKENS, (count,) + shape[1:])
    return random.standard_normal((count,) + shape)


# ----------------------------------------------------------------------------------------------------
# parameters


def _torch_place(name, layer):
    """Of a Paddle parameter: the name in PyTorch, which third of it, whether it is transposed."""
    path, _, last = name.rpartition(".")
    owner, _, role = path.rpartition(".")
    transposed = last == "weight" and type(layer).__name__.endswith("Linear")
    if role in ("q_proj", "k_proj", "v_proj"):
        return f"{owner}.in_proj_{last}", "qkv".index(role[0]), transposed
    return name, None, transposed


def trainable(network):
    """The parameters by name, without a batch norm's running statistics, which Paddle counts among them."""
    return {name: p for name, p in network.named_parameters() if not p.stop_gradient}


def _places(network):
    layers = dict(network.named_sublayers(include_self=True))
    return {name: _torch_place(name, layers[name.rpartition(".")[0]]) for name in trainable(network)}


def to_torch(network, values):
    """One array for each of `trainable`, in order, to a dict of arrays by PyTorch's names."""
    whole = {}
    for (name, third, transposed), value in zip(_places(network).values(), values):
        value = value.T if transposed else value
        whole.setdefault(name, []).append(value)
        assert third is None or len(whole[name]) == third + 1
    return {name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in whole.items()}


def from_torch(network, values):
    """A dict of arrays by PyTorch's names to a list in the order and layout of `trainable`."""
    arrays = []
    for name, third, transposed in _places(network).values():
        value = values[name] if third is None else np.split(values[name], 3)[third]
        arrays.append(value.T if transposed else value)
    return arrays


def _with_weights(theirs, ours):
    """PyTorch's network, in float64, with the Paddle network's weights."""
    import torch

    theirs = theirs.double()
    weights = to_torch(ours, [parameter.numpy() for parameter in trainable(ours).values()])
    parameters = dict(theirs.named_parameters())
    assert {n: tuple(p.shape) for n, p in parameters.items()} == {n: w.shape for n, w in weights.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(weights[name]))
    return theirs


def _random_biases(network, seed=3):
    """Biases and scales that are neither zero nor one, so that none is forgotten."""
    random = np.random.RandomState(seed)
    for parameter in trainable(network).values():
        if parameter.ndim == 1:
            offset = 0.3 * random.standard_normal(parameter.shape)
            parameter.set_value(parameter.numpy() + offset.astype(parameter.numpy().dtype))
    return network


# ----------------------------------------------------------------------------------------------------
# networks


def paddle_perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, N_OUTPUTS)
    )


def torch_perceptron(ours):
    from torch import nn

    return _with_weights(
        nn.Sequential(
            nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, N_OUTPUTS)
        ),
        ours,
    )


def paddle_convolutional():
    # No bias in front of a batch norm: its gradient would be rounding alone. A slope that is exact in single
    # precision, to which Paddle 2.6 rounds it.
    return nn.Sequential(
        nn.Conv2D(2, 6, 3, padding=1, bias_attr=False),
        nn.BatchNorm2D(6),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(6, 6, 3, padding=1, groups=6),
        nn.AvgPool2D(2),
        nn.LeakyReLU(0.125),
        nn.Conv2D(6, 8, 3, padding=1, bias_attr=False),
        nn.BatchNorm2D(8),
        nn.ELU(),
        nn.AdaptiveAvgPool2D(2),
        nn.Dropout(0.0),
        nn.Flatten(),
        nn.Linear(32, N_OUTPUTS),
    )


def torch_convolutional(ours):
    from torch import nn

    return _with_weights(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.AvgPool2d(2),
            nn.LeakyReLU(0.125),
            nn.Conv2d(6, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Dropout(0.0),
            nn.Flatten(),
            nn.Linear(32, N_OUTPUTS),
        ),
        ours,
    )


def paddle_normalised():
    return nn.Sequential(
        nn.Conv2D(2, 6, 3, padding=1),
        nn.GroupNorm(3, 6),
        nn.Silu(),
        nn.MaxPool2D(3, 2, 1),
        nn.Flatten(),
        nn.Linear(54, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, N_OUTPUTS),
    )


def torch_normalised(ours):
    from torch import nn

    return _with_weights(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.GroupNorm(3, 6),
            nn.SiLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            nn.Linear(54, 16),
            nn.LayerNorm(16),
            nn.GELU(),
            nn.Linear(16, N_OUTPUTS),
        ),
        ours,
    )


class PaddleTransformer(nn.Layer):
    """Tokens to vectors, one encoder layer, the mean over the sequence."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu")
        self.head = nn.Linear(8, N_OUTPUTS)

    def forward(self, tokens):
        return self.head(self.block(self.embedding(tokens)).mean(1))


def torch_transformer(ours):
    import torch
    from torch import nn

    class Block(nn.Module):
        # Not nn.TransformerEncoderLayer: its fused attention has no second derivative.
        def __init__(self):
            super().__init__()
            self.self_attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.linear1, self.linear2 = nn.Linear(8, 12), nn.Linear(12, 8)
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

        def forward(self, x):
            x = self.norm1(x + self.self_attn(x, x, x, need_weights=True)[0])
            return self.norm2(x + self.linear2(torch.nn.functional.gelu(self.linear1(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.block, self.head = nn.Embedding(TOKENS, 8), Block(), nn.Linear(8, N_OUTPUTS)

        def forward(self, tokens):
            return self.head(self.block(self.embedding(tokens)).mean(1))

    return _with_weights(Transformer(), ours)


class PaddleLSTM(nn.Layer):
    """An LSTM cell, called step by step by the network itself."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 6), nn.Linear(6, N_OUTPUTS)

    def forward(self, x):
        state = None
        for step in range(x.shape[1]):
            output, state = self.cell(x[:, step], state)
        return self.head(output)


def torch_lstm(ours):
    from torch import nn

    class LSTM(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(3, 6), nn.Linear(6, N_OUTPUTS)

        def forward(self, x):
            state = None
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return self.head(state[0])

    return _with_weights(LSTM(), ours)


class PaddleGRU(nn.Layer):
    """A GRU cell under Paddle's own loop over time; the mean of its outputs."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(nn.GRUCell(3, 6)), nn.Linear(6, N_OUTPUTS)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


def torch_gru(ours):
    import torch
    from torch import nn

    class RNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 6)

        def forward(self, x):
            state, outputs = None, []
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
                outputs.append(state)
            return torch.stack(outputs, 1)

    class GRU(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = RNN(), nn.Linear(6, N_OUTPUTS)

        def forward(self, x):
            return self.head(self.rnn(x).mean(1))

    return _with_weights(GRU(), ours)


def _seeded(make):
    def make_paddle():
        paddle.seed(1)
        return _random_biases(make())

    return make_paddle


PAIRS = {
    "perceptron": (_seeded(paddle_perceptron), torch_perceptron, (3, 4), N_OUTPUTS),
    "convolutional": (_seeded(paddle_convolutional), torch_convolutional, (2, 12, 12), N_OUTPUTS),
    "normalised": (_seeded(paddle_normalised), torch_normalised, (2, 6, 6), N_OUTPUTS),
    "transformer": (_seeded(PaddleTransformer), torch_transformer, (int, 6), N_OUTPUTS),
    "lstm": (_seeded(PaddleLSTM), torch_lstm, (4, 3), N_OUTPUTS),
    "gru": (_seeded(PaddleGRU), torch_gru, (4, 3), N_OUTPUTS),
}

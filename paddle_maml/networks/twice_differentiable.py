"""A user's network made differentiable twice.

Second-order MAML differentiates a gradient. Paddle refuses that for many layers (max-pooling, softmax, layer
norm, embedding, `nn.Flatten`), and is very slow with others (batch norm). `twice_differentiable(network)`
replaces what these layers compute with, and nothing else.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.nn.layer.transformer import _convert_attention_mask

from ..kernels import elementwise, gathering, normalisation, pooling


def twice_differentiable(layer: nn.Layer) -> nn.Layer:
    """Convert a layer and all its sublayers in place, so that Paddle can differentiate them twice.

    A sublayer whose class is a key of `REPLACEMENTS`, not a subclass of one, becomes an instance of the class
    that stands there: a subclass which computes the same with operators that have a second derivative. It is
    the same object with the same parameters, buffers, `state_dict`, hooks, and `train()` or `eval()`; its
    outputs are equal to rounding, dropout from the same seed drops the same elements, and running statistics
    are updated as before. A network converted twice is as one converted once.

    Left alone are classes that Paddle differentiates twice by itself (`TESTED` names those that were held
    against PyTorch), the user's own, and those that cannot be had: the fused `nn.LSTM`, `nn.GRU` and
    `nn.SimpleRNN` (use `nn.RNN` over a cell), transposed convolutions, `nn.Upsample`, `nn.PixelShuffle`, a
    max-pooling with `return_mask`, an `nn.Embedding` with `max_norm` or `scale_grad_by_freq`, and in 2.6 an
    `nn.Conv1D` with as many groups as channels; Paddle refuses their second derivative. What a user's own
    `forward` calls, such as `F.softmax` or `paddle.flatten`, stays what it is: call the function of the same
    name in `paddle_maml.kernels` instead.

    Args:
        layer: any network, run as a dynamic graph.

    Returns:
        The same object.
    """
    for sublayer in layer.sublayers(include_self=True):
        if type(sublayer) in REPLACEMENTS:
            sublayer.__class__ = REPLACEMENTS[type(sublayer)]
    return layer


def as_it_was(layer: nn.Layer) -> nn.Layer:
    """The inverse of `twice_differentiable`, in place; returns the same object."""
    stock = {replacement: own for own, replacement in REPLACEMENTS.items()}
    for sublayer in layer.sublayers(include_self=True):
        sublayer.__class__ = stock.get(type(sublayer), type(sublayer))
    return layer


# ----------------------------------------------------------------------------------------------------
# What the layers compute. Each is the `forward` of a subclass; the attributes are those of Paddle's layer.


def _batch_norm(self, input):
    self._check_data_format(self._data_format)
    self._check_input_dim(input)
    use_running = not self.training if self._use_global_stats is None else self._use_global_stats
    if use_running:
        mean, variance = self._mean, self._variance
    else:
        mean, variance = normalisation.channel_moments(input, self._data_format)
        momentum = elementwise.single(self._momentum)
        with paddle.no_grad():
            for running, batch in ((self._mean, mean), (self._variance, variance)):
                paddle.assign(momentum * running + (1.0 - momentum) * batch, running)
    return normalisation.batch_norm(
        input, mean, variance, self.weight, self.bias, self._epsilon, self._data_format
    )


def _layer_norm(self, input):
    return normalisation.layer_norm(input, self._normalized_shape, self.weight, self.bias, self._epsilon)


def _group_norm(self, input):
    return normalisation.group_norm(
        input, self._num_groups, self.weight, self.bias, self._epsilon, self._data_format
    )


def _instance_norm(self, input):
    self._check_input_dim(input)
    return normalisation.group_norm(input, input.shape[1], self.scale, self.bias, self._epsilon)


def _max_pool1d(self, input):
    if self.return_mask:
        return nn.MaxPool1D.forward(self, input)
    return pooling.max_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode)


def _max_pool2d(self, x):
    if self.return_mask:
        return nn.MaxPool2D.forward(self, x)
    return pooling.max_pool2d(x, self.ksize, self.stride, self.padding, self.ceil_mode, self.data_format)


def _adaptive_max_pool1d(self, input):
    if self.return_mask:
        return nn.AdaptiveMaxPool1D.forward(self, input)
    return pooling.adaptive_max_pool1d(input, self.output_size)


def _adaptive_max_pool2d(self, x):
    if self._return_mask:
        return nn.AdaptiveMaxPool2D.forward(self, x)
    return pooling.adaptive_max_pool2d(x, self._output_size)


def _embedding(self, x):
    if getattr(self, "_max_norm", None) is not None or getattr(self, "_scale_grad_by_freq", False):
        return nn.Embedding.forward(self, x)
    return gathering.embedding(x, self.weight, self._padding_idx)


def _flatten(self, input):
    return gathering.flatten(input, self.start_axis, self.stop_axis)


def _dropout(self, input):
    return elementwise.dropout(input, self.p, self.axis, self.training, self.mode)


def _dropout_channels(self, input):
    return elementwise.dropout_channels(input, self.p, self.training, self.data_format)


def _prelu(self, x):
    return elementwise.prelu(x, self._weight, x.ndim - 1 if self._data_format[-1] == "C" else 1)


def _attention(self, query, key=None, value=None, attn_mask=None, cache=None):
    key = query if key is None else key
    value = query if value is None else value
    q, k, v, *cache = self._prepare_qkv(query, key, value, cache)
    product = paddle.matmul(q * self.head_dim**-0.5, k, transpose_y=True)
    if attn_mask is not None:
        product = product + _convert_attention_mask(attn_mask, product.dtype)
    weights = elementwise.softmax(product)
    if self.dropout:
        weights = elementwise.dropout(weights, self.dropout, training=self.training)
    heads = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
    out = self.out_proj(heads.reshape(heads.shape[:2] + [self.embed_dim]))
    outs = [out] + [weights] * self.need_weights + cache
    return out if len(outs) == 1 else tuple(outs)


def _steps(cell, inputs, states, lengths, time_major, is_reverse, **kwargs):
    """The cell over a sequence: (B, time, ...), or with the time first, to the same and the last states."""
    axis = 0 if time_major else 1
    if states is None:
        states = cell.get_initial_states(batch_ref=inputs, batch_dim_idx=1 - axis)
    order = list(range(inputs.shape[axis]))
    outputs = {}
    for step in reversed(order) if is_reverse else order:
        output, new = cell(inputs[step] if time_major else inputs[:, step], states, **kwargs)
        if lengths is not None:
            # Beyond the end of its sequence a state stays what it is.
            going_on = (lengths > step).astype(inputs.dtype).unsqueeze(-1)
            new = paddle.utils.map_structure(
                lambda before, after, on=going_on: after * on + before * (1.0 - on), states, new
            )
        states, outputs[step] = new, output
    return gathering.stack([outputs[step] for step in order], axis), states


def _rnn(self, inputs, initial_states=None, sequence_length=None, **kwargs):
    return _steps(
        self.cell, inputs, initial_states, sequence_length, self.time_major, self.is_reverse, **kwargs
    )


def _birnn(self, inputs, initial_states=None, sequence_length=None, **kwargs):
    outputs, states = [], []
    for cell, start, is_reverse in zip(
        (self.cell_fw, self.cell_bw), initial_states or (None, None), (False, True)
    ):
        output, state = _steps(cell, inputs, start, sequence_length, self.time_major, is_reverse, **kwargs)
        outputs.append(output)
        states.append(state)
    return paddle.concat(outputs, -1), tuple(states)


def _with(stock, name, replace):
    """The stock forward, during which an attribute of the layer is another."""

    def forward(self, *args, **kwargs):
        before = getattr(self, name)
        setattr(self, name, replace(before))
        try:
            return stock.forward(self, *args, **kwargs)
        finally:
            setattr(self, name, before)

    return forward


def _convolution(stock):
    # Groups of one channel have an operator of their own in Paddle, without a second derivative.
    forward = _with(stock, "_op_type", lambda operator: "conv2d") if stock is nn.Conv2D else stock.forward

    def of_dependent_input(self, x):
        # Paddle's second derivative of conv2d is silently wrong where the input is a constant, as it is in a
        # network's first layer. An input that depends on the weight is none.
        return forward(self, x + 0.0 * self.weight.sum())

    return of_dependent_input


def _activation(function):
    return elementwise.gelu if function is F.gelu else function


_FORWARDS = {
    nn.BatchNorm1D: _batch_norm,
    nn.BatchNorm2D: _batch_norm,
    nn.BatchNorm3D: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1D: _instance_norm,
    nn.InstanceNorm2D: _instance_norm,
    nn.InstanceNorm3D: _instance_norm,
    nn.MaxPool1D: _max_pool1d,
    nn.MaxPool2D: _max_pool2d,
    nn.AdaptiveMaxPool1D: _adaptive_max_pool1d,
    nn.AdaptiveMaxPool2D: _adaptive_max_pool2d,
    nn.Embedding: _embedding,
    nn.Flatten: _flatten,
    nn.Dropout: _dropout,
    nn.Dropout2D: _dropout_channels,
    nn.Dropout3D: _dropout_channels,
    nn.Softmax: lambda self, x: elementwise.softmax(x, self._axis),
    nn.LogSoftmax: lambda self, x: elementwise.log_softmax(x, self._axis),
    nn.GELU: lambda self, x: elementwise.gelu(x, self._approximate),
    nn.ReLU6: lambda self, x: elementwise.relu6(x),
    nn.SELU: lambda self, x: elementwise.selu(x, self._scale, self._alpha),
    nn.Swish: lambda self, x: F.silu(x),
    nn.Hardswish: lambda self, x: elementwise.hardswish(x),
    nn.Hardsigmoid: lambda self, x: elementwise.hardsigmoid(x),
    nn.Hardtanh: lambda self, x: paddle.clip(x, self._min, self._max),
    nn.Softsign: lambda self, x: elementwise.softsign(x),
    nn.LogSigmoid: lambda self, x: elementwise.log_sigmoid(x),
    nn.Mish: lambda self, x: elementwise.mish(x),
    nn.PReLU: _prelu,
    nn.MultiHeadAttention: _attention,
    nn.TransformerEncoderLayer: _with(nn.TransformerEncoderLayer, "activation", _activation),
    nn.TransformerDecoderLayer: _with(nn.TransformerDecoderLayer, "activation", _activation),
    nn.RNN: _rnn,
    nn.BiRNN: _birnn,
    nn.Conv1D: _convolution(nn.Conv1D),
    nn.Conv2D: _convolution(nn.Conv2D),
}

REPLACEMENTS = {
    stock: type(f"Twice{stock.__name__}", (stock,), {"forward": forward, "__module__": __name__})
    for stock, forward in _FORWARDS.items()
}
# By their names in this module they can be pickled and copied.
globals().update({replacement.__name__: replacement for replacement in REPLACEMENTS.values()})

# What Paddle differentiates twice by itself, and what stands above: held against differences by tests.
TESTED = frozenset(REPLACEMENTS.values()) | {
    nn.AdaptiveAvgPool1D,
    nn.AdaptiveAvgPool2D,
    nn.AvgPool1D,
    nn.AvgPool2D,
    nn.CELU,
    nn.Conv3D,
    nn.ELU,
    nn.GRUCell,
    nn.Identity,
    nn.LayerList,
    nn.LeakyReLU,
    nn.Linear,
    nn.LSTMCell,
    nn.ReLU,
    nn.Sequential,
    nn.Sigmoid,
    nn.Silu,
    nn.SimpleRNNCell,
    nn.Softplus,
    nn.Tanh,
    nn.TransformerDecoder,
    nn.TransformerEncoder,
    nn.ZeroPad2D,
}


def trusted(layer: nn.Layer) -> bool:
    """Whether second derivatives of this layer, without those in it, are tested: by its class, if it has no
    hooks, which may compute anything, such as weight norm."""
    # Paddle 2.6 has none of a Conv1D with as many groups as channels.
    grouped = isinstance(layer, nn.Conv1D) and layer._groups > 1
    return type(layer) in TESTED and not (layer._forward_pre_hooks or layer._forward_post_hooks or grouped)

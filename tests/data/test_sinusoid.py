"""Sinusoids: the written rule, rebuilt from scratch; a golden hash; and what must hold of every task."""

import hashlib
import math
import struct
from fractions import Fraction

import numpy as np
import paddle
import pytest
from plain_philox import philox

from paddle_maml.data.episodes import meta_batch
from paddle_maml.data.sinusoid import SinusoidBuilder, sinusoid
from paddle_maml.errors import UserError

# SHA-256 over the four arrays of tasks 0, 1 and 10**6, of seed 7 and of the largest seed.
GOLDEN = "2d32df4f0be28cbd8d764b38a3b6e1b012148bd80cfd18c79edda54284eeac10"


def single(number):
    """Rounded to float32."""
    return struct.unpack("f", struct.pack("f", number))[0]


def expected_task(k_shot, k_query, seed, index):
    """The rule of the module's docstring once more, in plain Python: amplitude, phase, x and y."""
    words = philox(seed, index)

    def uniform(low, high):
        return low + (high - low) * ((next(words) >> 11) / 2**53)

    def sine(t):
        n = round(t * (1 / math.pi))
        r = (t - n * 3.141592653468251) - n * 1.2154201013012384e-10
        s, p = r * r, 1 / math.factorial(21)
        for k in range(9, -1, -1):
            p = (-1) ** k / math.factorial(2 * k + 1) + s * p
        return -(r * p) if n % 2 else r * p

    amplitude, phase = uniform(0.1, 5.0), uniform(0.0, math.pi)
    x = [single(uniform(-5.0, 5.0)) for _ in range(k_shot + k_query)]
    return amplitude, phase, x, [single(amplitude * sine(t - phase)) for t in x]


@pytest.mark.parametrize("k_shot, k_query, seed, index", [(5, 10, 0, 0), (10, 10, 2**64 - 1, 2**31 - 2)])
def test_task_is_rebuilt_by_the_written_rule(k_shot, k_query, seed, index):
    builder = SinusoidBuilder(k_shot, k_query, seed)
    amplitude, phase, x, y = expected_task(k_shot, k_query, seed, index)
    x_spt, y_spt, x_qry, y_qry = builder[index]
    assert builder.draw(index) == (amplitude, phase)
    assert np.concatenate([x_spt, x_qry]).ravel().tolist() == x
    assert np.concatenate([y_spt, y_qry]).ravel().tolist() == y
    assert x_spt.shape == y_spt.shape == (k_shot, 1) and x_qry.shape == y_qry.shape == (k_query, 1)
    assert {array.dtype for array in builder[index]} == {np.dtype(np.float32)}


def test_golden():
    digest = hashlib.sha256()
    for seed in (7, 2**64 - 1):
        builder = SinusoidBuilder(10, 5, seed)
        for index in (0, 1, 10**6):
            for array in builder[index]:
                digest.update(array.astype("<f4").tobytes())
    assert digest.hexdigest() == GOLDEN


def test_pi_in_two_parts():
    high, low = (Fraction(float.fromhex(text)) for text in ("0x1.921fb544p+1", "0x1.0b4611a626331p-33"))
    pi = Fraction("3.14159265358979323846264338327950288419716939937510582097494459")
    assert abs(high + low - pi) < Fraction(1, 10**25)
    assert all(Fraction(float(high) * n) == high * n for n in range(-3, 3))  # exact, as the rule needs


def test_values_are_those_of_the_sine():
    x, phases = np.linspace(-5, 5, 2001), np.linspace(0, math.pi, 101)
    for phase in [*phases, 5e-324, 1e-9, math.pi - 1e-9]:
        np.testing.assert_allclose(sinusoid(x, 1.0, phase), np.sin(x - phase), rtol=4e-16, atol=4e-16)
    builder = SinusoidBuilder(50, 50, seed=3)
    for index in range(50):
        amplitude, phase = builder.draw(index)
        for x, y in zip(builder[index][::2], builder[index][1::2]):
            library = (amplitude * np.sin(x.astype(np.float64) - phase)).astype(np.float32)
            np.testing.assert_array_max_ulp(y, library, 1)


def test_draws_are_even():
    builder = SinusoidBuilder(5, 5)
    drawn = np.array([[*builder.draw(index), *builder[index][0].ravel()] for index in range(2000)])
    for values, low, high in (
        (drawn[:, 0], 0.1, 5),
        (drawn[:, 1], 0, math.pi),
        (drawn[:, 2:].ravel(), -5, 5),
    ):
        assert low <= values.min() and values.max() <= high
        counts = np.histogram(values, 20, (low, high))[0]
        expected = len(values) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 19 + 5 * (2 * 19) ** 0.5


def test_fewer_shots_are_the_first_of_more():
    few, more = SinusoidBuilder(5, 10, seed=4), SinusoidBuilder(20, 10, seed=4)
    assert few.draw(9) == more.draw(9)
    np.testing.assert_array_equal(few[9][0], more[9][0][:5])
    np.testing.assert_array_equal(few[9][1], more[9][1][:5])


def test_meta_batches_and_the_data_loader():
    builder = SinusoidBuilder(5, 7, length=4)
    arrays = meta_batch(builder, [2, 3])
    assert [array.shape for array in arrays] == [(2, 5, 1), (2, 5, 1), (2, 7, 1), (2, 7, 1)]
    batches = list(paddle.io.DataLoader(builder, batch_size=2, shuffle=False, places=paddle.CPUPlace()))
    for loaded, own, single_task in zip(batches[1], arrays, builder[2]):
        assert np.array_equal(loaded.numpy(), own) and np.array_equal(own[0], single_task)
    assert not np.array_equal(arrays[0][0], arrays[0][1])


def test_length_and_indices():
    builder = SinusoidBuilder(1, 1, length=3)
    assert len(builder) == 3
    for index in (-1, 3):
        for ask in (builder.__getitem__, builder.draw):
            with pytest.raises(IndexError):
                ask(index)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"k_shot": 0}, "k_shot is 0, but must be at least 1"),
        ({"k_query": -2}, "k_query is -2"),
        ({"length": 0}, "length is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_numbers(wrong, message):
    with pytest.raises(UserError, match=message):
        SinusoidBuilder(**{"k_shot": 5, "k_query": 5, **wrong})

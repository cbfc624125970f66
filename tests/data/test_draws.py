"""Random draws: the written rule, rebuilt from scratch."""

import numpy as np
import pytest
from plain_philox import philox

from paddle_maml.data.draws import Draws, philox_words


def test_philox_known_answer():
    """The vector that the authors of Philox publish: counter and key zero, here as the first words of NumPy's
    counter -1."""
    generator = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.full(4, 2**64 - 1, np.uint64))
    assert [hex(word) for word in generator.random_raw(4).tolist()] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


@pytest.mark.parametrize("seed, index", [(0, 0), (1, 2**31), (2**64 - 1, 2**64 - 1)])
def test_words_are_philox(seed, index):
    own, other = philox_words(seed, index), philox(seed, index)
    assert [next(own) for _ in range(300)] == [next(other) for _ in range(300)]


def test_rejection_keeps_draws_unbiased():
    limit = 2**64 - 2**64 % 10
    assert Draws(iter([limit, 2**64 - 1, 23])).below(10) == 3
    assert Draws(iter([limit - 1])).below(10) == 9
    assert Draws(iter([2**64 - 1])).below(4) == 3
    words = iter([5, 6])
    assert Draws(words).below(1) == 0 and next(words) == 6


def test_choose_is_a_partial_fisher_yates_shuffle():
    assert Draws(iter([4, 0, 1])).choose(5, 3) == [4, 1, 3]

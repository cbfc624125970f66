"""Fixtures that several test files share."""

import functools
import os
import signal

import pytest

from paddle_maml.engine import device

# Before any test imports Paddle. Not all of `prepare`: the commands that tests start would inherit it, and
# must do it themselves.
device.use_all_of_amd()

# A shell's background jobs ignore SIGINT, and nohup's SIGHUP, and so would the programs that tests start and
# interrupt; what has a handler here is not ignored there.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture
def float64():
    """Paddle's default dtype is float64 inside the test."""
    import paddle

    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)


@pytest.fixture(scope="module")
def drawn_once():
    """Every run of a test file uses the same drawings: the second is spent once."""
    from paddle_maml.engine import assembly

    draw = assembly.draw_synthetic
    assembly.draw_synthetic = functools.lru_cache(draw)
    yield
    assembly.draw_synthetic = draw


@pytest.fixture
def fill_the_disk(monkeypatch):
    """A function of a number n: from then on the nth file or folder that is to be on the disk finds it
    full."""

    def fill(number):
        calls = []

        def fsync(descriptor):
            calls.append(descriptor)
            if len(calls) == number:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


@pytest.fixture(scope="session")
def omniglot():
    """All of the real Omniglot, from OMNIGLOT_DIR or data/; the test is skipped where neither is."""
    from paddle_maml.data.omniglot import load_omniglot
    from paddle_maml.errors import UserError

    try:
        return load_omniglot(download=False)
    except UserError as error:
        # What is named or there must be usable; only its absence is no failure.
        if os.environ.get("OMNIGLOT_DIR") or "There is no Omniglot" not in str(error):
            raise
        pytest.skip(str(error))

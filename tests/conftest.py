"""Fixtures that several test files share."""
import pytest


@pytest.fixture
def float64():
    """Paddle's default dtype is float64 inside the test."""
    import paddle
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)

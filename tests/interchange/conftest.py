"""The small export that the tests of this folder share."""

import pytest
from interchange_export import make

from paddle_maml.interchange.format import read_export


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Ten meta-iterations with our traces in float64: the folder."""
    return make(tmp_path_factory.mktemp("interchange") / "export", 10, ["float64"])


@pytest.fixture(scope="session")
def problem(small):
    """The same, read."""
    return read_export(small)

"""The figures of the trials, at the end of a test run; and a run that was not disturbed."""

import pytest
import trials


def pytest_terminal_summary(terminalreporter):
    if trials.FIGURES:
        terminalreporter.section("reliability, " + ("all trials" if trials.FULL else "a sample"))
        for what, number in trials.FIGURES.items():
            terminalreporter.write_line(f"{number:6} {what}")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a tiny run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert trials.train(folder) == 0
    return folder

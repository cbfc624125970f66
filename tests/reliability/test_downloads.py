"""Downloads that break off, stall, never end or bring something else: one sentence, and no half file."""

import functools

import pytest
from faulty_server import FaultyServer
from trials import assert_refused, count, some

from paddle_maml.commands import cli
from paddle_maml.data import download, omniglot

FAULTS = ["spoil", "refuse", "cut", "short", "stall", "drip", "silence", "nonsense", "circle", "endless"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS[: some(len(FAULTS), 3)])
def test_a_download_that_goes_wrong(tmp_path, monkeypatch, capfd, fault):
    (tmp_path / "served").mkdir()
    for part in omniglot.PARTS:
        (tmp_path / "served" / f"{part}.zip").write_bytes(b"PK" + bytes(100_000))
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(omniglot, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(omniglot, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(omniglot, "fetch", functools.partial(download.fetch, pause=0, timeout=0.5))
    monkeypatch.delenv("OMNIGLOT_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FaultyServer(tmp_path / "served")
    monkeypatch.setenv("OMNIGLOT_URL", server.url)
    server.faults = [fault] * 100
    run = tmp_path / "run"
    try:
        status = cli.main_train(["--output", str(run), "--device", "cpu", "--processes", "1"])
    finally:
        server.close()
    captured = capfd.readouterr()
    *tries, sentence = captured.err.splitlines()
    assert status == 2 and sentence.startswith("error: Omniglot is not here and images_background.zip")
    assert all(line.startswith(f"{server.url}/images_background.zip: ") for line in tries), tries
    assert not list((tmp_path / "data").iterdir()) and not run.exists()
    count("kinds of downloads that go wrong, three tries each")


def test_an_address_that_is_none(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(omniglot, "own_folders", lambda: [tmp_path / "data"])
    monkeypatch.setattr(omniglot, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(omniglot, "fetch", functools.partial(download.fetch, pause=0, attempts=1))
    monkeypatch.delenv("OMNIGLOT_DIR", raising=False)
    for url in (
        "nonsense",
        "http://",
        "http://[",
        "file:///nowhere",
        "ftp://127.0.0.1:1",
        "http://127.0.0.1:1/ü",
    ):
        monkeypatch.setenv("OMNIGLOT_URL", url)
        assert_refused(capfd, cli.main, ["data"])
        count("addresses that nothing can be had from")

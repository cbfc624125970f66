"""The page is served, and answers, as seen by a program; test_browser.py has what a user sees."""

import base64
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from characters import CHARACTERS, changed, sketch
from PIL import Image
from tiny_run import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio"),
]
fetch = build_opener(ProxyHandler({})).open  # whatever proxy the environment names


@pytest.fixture
def start():
    """A function that starts a program of Python, and returns it and its lines up to one with an address."""
    processes = []

    def begin(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        lines = [process.stdout.readline()]
        while lines[-1] and "http://" not in lines[-1]:
            lines.append(process.stdout.readline())
        return process, lines

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def url(strokes):
    file = io.BytesIO()
    Image.fromarray(sketch(strokes)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(address, strokes):
    """What the page says to strokes for each of its places."""
    data = json.dumps({"data": [[url(one) for one in strokes]]}).encode()
    calls = f"{address}gradio_api/call/ask"
    event = json.load(fetch(Request(calls, data, {"Content-Type": "application/json"}), timeout=60))[
        "event_id"
    ]
    stream = fetch(f"{calls}/{event}", timeout=60).read().decode()
    assert "event: complete" in stream
    return json.loads(stream.rpartition("data: ")[2])[0]


def assert_answers(address):
    names = list(CHARACTERS)
    examples = list(CHARACTERS.values())
    for name in ("cross", "circle", "bar"):
        said = ask(address, [*examples, changed(CHARACTERS[name], scale=0.9)])
        assert f"is character <b>{names.index(name) + 1}</b>" in said
    assert "The new character is empty: draw it." in ask(address, [*examples, []])


@pytest.mark.parametrize(
    "host, elsewhere",
    [(None, False), ("0.0.0.0", True), ("::1", False)],
    ids=["default", "everywhere", "version 6"],
)
def test_the_command(start, host, elsewhere):
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("needs version 6 of IP")
    options = ["--host", host] if host else []
    process, (*before, line) = start("-m", "paddle_maml", "draw", "--port", "0", "--device", "cpu", *options)
    address = line.split()[2].replace("0.0.0.0", "127.0.0.1")
    assert line.startswith("Draw at http://") and urlsplit(address).hostname == (
        "::1" if host == "::1" else "127.0.0.1"
    )
    with fetch(address, timeout=60) as page:
        assert page.status == 200 and "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert_answers(address)
    assert ("Whoever reaches this machine can use the page.\n" in before) == elsewhere
    # All of 127.0.0.0/8 is this machine, as are its other addresses.
    with socket.socket() as other:
        assert (other.connect_ex(("127.0.0.2", urlsplit(address).port)) == 0) == elsewhere
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    # Matplotlib, which Gradio brings along, may say that it lists the machine's fonts.
    assert process.returncode == 130 and errors.endswith("Stopped.\n") and "Traceback" not in errors, errors


def test_the_program_for_hosts(start):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, lines = start("docs/app.py", GRADIO_SERVER_PORT=str(port))
    assert f"http://127.0.0.1:{port}" in lines[-1]
    assert_answers(f"http://127.0.0.1:{port}/")

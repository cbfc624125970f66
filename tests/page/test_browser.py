"""The page in a real browser without a window: Chromium, driven by Selenium; Debian has it as `chromium` and
`chromium-driver`.

    DRAW_PICTURE=docs/draw.png python -m pytest -m slow tests/page -k picture

writes the page's picture, and a dark one beside it.
"""

import base64
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from characters import CHARACTERS, changed
from PIL import Image
from tiny_run import ROOT

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402 - as far as there is Selenium
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

NAMES = list(CHARACTERS)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio"),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its driver"),
]


@pytest.fixture(scope="module")
def address():
    """Where the command serves the page; it is ended as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paddle_maml", "draw", "--port", "0", "--device", "cpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stdout.readline, "")
    yield next(line for line in lines if line.startswith("Draw at")).split()[2]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    # Matplotlib, which Gradio brings along, may say that it lists the machine's fonts.
    assert process.returncode == 130 and errors.endswith("Stopped.\n") and "Traceback" not in errors, errors


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # No sandbox: it does not start for root, in a container.
    for flag in ("headless=new", "no-sandbox", "window-size=1280,1000", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


class Page:
    """The page, as a user sees it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.wait(lambda: browser.execute_script("return !!window.mamlSketches"))
        self.pads = browser.find_elements(By.CSS_SELECTOR, "canvas.maml-pad")

    def wait(self, condition):
        return WebDriverWait(self.browser, 40).until(lambda _: condition())

    def mouse(self, kind, x, y):
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def draw(self, pad, strokes):
        """Draw strokes on a place, by number, with the mouse."""
        script = "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        left, top, width, height = self.browser.execute_script(script, self.pads[pad])
        for stroke in strokes:
            points = [(left + x * width, top + y * height) for x, y in stroke]
            self.mouse("mousePressed", *points[0])
            for point in points[1:]:
                self.mouse("mouseMoved", *point)
            self.mouse("mouseReleased", *points[-1])

    def ask(self):
        """What the page says; it must be another thing than before."""
        said = "#maml-said .maml-answer, #maml-said .maml-refusal"
        before = self.browser.find_elements(By.CSS_SELECTOR, said)
        self.browser.execute_script("arguments[0].forEach((e) => e.classList.add('old'))", before)
        self.browser.find_element(By.ID, "maml-ask").click()
        new = "#maml-said .maml-answer:not(.old), #maml-said .maml-refusal:not(.old)"
        self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, new))
        return self.browser.find_element(By.ID, "maml-said").text

    def clear(self, pad):
        self.browser.find_elements(By.CSS_SELECTOR, ".maml-pads figcaption button")[pad].click()

    def ink(self, pad):
        """How many pixels have ink."""
        return self.browser.execute_script(
            "const c = arguments[0]; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return d.filter((v, i) => i % 4 == 3 && v > 0).length",
            self.pads[pad],
        )


@pytest.fixture
def page(browser, address):
    return Page(browser, address)


def draw_examples(page, names=NAMES):
    for pad, name in enumerate(names):
        page.draw(pad, CHARACTERS[name])


def test_clear_cases(page):
    assert len(page.pads) == 6
    draw_examples(page)
    for name in NAMES:
        page.draw(5, changed(CHARACTERS[name], shift=(0.04, -0.03), scale=0.9, turn=6))
        said = page.ask()
        assert f"is character {NAMES.index(name) + 1}, with probability" in said
        assert "With each example" in said and "With each inner step" in said
        page.clear(5)
    page.clear(4)
    page.clear(2)
    page.draw(5, changed(CHARACTERS["circle"], scale=0.8))
    said = page.ask()
    assert "is character 2" in said and "1, 2, 4" in said


def test_what_is_no_drawing(page):
    assert "Draw one example each of at least two characters: there are 0." in page.ask()
    draw_examples(page, NAMES[:2])
    assert "The new character is empty: draw it." in page.ask()
    page.draw(5, [[(0.5, 0.5)]])
    assert page.ink(5) > 0 and "The new character is only a spot" in page.ask()
    page.browser.execute_script(
        "const c = arguments[0]; c.getContext('2d').fillRect(0, 0, c.width, c.height)", page.pads[5]
    )
    assert "The new character is mostly black" in page.ask()
    page.clear(5)
    assert page.ink(5) == 0
    page.draw(5, CHARACTERS["cross"])
    assert "is character 1" in page.ask()
    page.browser.find_element(By.ID, "maml-clear").click()
    page.wait(lambda: not page.browser.find_element(By.ID, "maml-said").text)
    assert not any(page.ink(pad) for pad in range(6))


@pytest.mark.parametrize(
    "sent, said",
    [
        ("[]", "Send 6 sketches."),
        ("7", "Send 6 sketches."),
        ("[1, 2, 3, 4, 5, 6]", "That is no sketch"),
        ("Array(6).fill('data:image/png;base64,iVBORw0KGgo=')", "That is no sketch"),
    ],
)
def test_what_the_page_does_not_send_is_refused(page, sent, said):
    page.browser.execute_script(f"window.mamlSketches = () => {sent}")
    assert page.ask().startswith(said)


def asked(browser):
    """The hosts that the browser asked since it was asked this."""
    hosts = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme not in ("data", "blob"):
                hosts.add(url.netloc)
    return hosts


def test_no_other_host_is_asked(browser, address):
    browser.get("about:blank")
    asked(browser)
    page = Page(browser, address)
    draw_examples(page, NAMES[:2])
    page.draw(5, CHARACTERS["bar"])
    page.ask()
    time.sleep(2)  # what would be asked later
    assert asked(browser) == {urlsplit(address).netloc}
    # Nor could it be: the same server by another name is another host.
    other = address.replace("127.0.0.1", "localhost")
    ask_it = (
        "fetch(arguments[0], {mode: 'no-cors'}).then(() => arguments[1](true), () => arguments[1](false))"
    )
    assert browser.execute_async_script(ask_it, address) is True
    assert browser.execute_async_script(ask_it, other) is False


@pytest.mark.skipif("DRAW_PICTURE" not in os.environ, reason="DRAW_PICTURE says where the picture is to go")
def test_picture(browser, address):
    path = Path(ROOT, os.environ["DRAW_PICTURE"])
    for scheme, target in (("light", path), ("dark", path.with_name(f"{path.stem}-dark.png"))):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page = Page(browser, address)
        draw_examples(page)
        page.draw(5, changed(CHARACTERS["hook"], shift=(0.03, -0.02), scale=0.92, turn=4))
        page.ask()
        bottom = page.browser.execute_script(
            "return document.querySelector('#maml-said').getBoundingClientRect().bottom"
        )
        clip = {"x": 0, "y": 0, "width": 1280, "height": bottom + 16, "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
        # Few colours: a small file.
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB").quantize(64, dither=0)
        image.save(target, optimize=True)
        assert target.stat().st_size < 150_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

"""The page as a Gradio application, and a server for it. Gradio is optional; only this module imports it."""

from __future__ import annotations

import os
import socket
import warnings

import gradio
import uvicorn
from fastapi import FastAPI

from ..errors import UserError
from ..inference.classifier import Classifier
from .answers import answer, places, read_sketch
from .markup import SCRIPT, answered, pads, refusal

# The browser asks no other host, whatever a release of Gradio would have it load from one.
POLICY = (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:")


def application(classifier: Classifier) -> gradio.Blocks:
    """The page.

    Args:
        classifier: as `paddle_maml.load` gives it.
    """
    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # drawings are not kept in the browser

    # Functions that are not async run in threads of Gradio's, and Paddle keeps settings by thread.
    async def ask(urls):
        try:
            if not isinstance(urls, list) or len(urls) != places(classifier) + 1:
                raise UserError(f"Send {places(classifier) + 1} sketches.")
            sketches = [read_sketch(url) for url in urls]
            return answered(answer(classifier, sketches), sketches)
        except UserError as error:
            return refusal(str(error))

    with gradio.Blocks(title="paddle_maml: draw", analytics_enabled=False) as page:
        gradio.HTML(pads(places(classifier)))
        with gradio.Row():
            asking = gradio.Button("Which is it?", variant="primary", elem_id="maml-ask")
            clearing = gradio.Button("Clear all", elem_id="maml-clear")
        said = gradio.HTML(elem_id="maml-said")
        sent = gradio.JSON(visible=False)
        page.load(None, js=SCRIPT)
        asking.click(ask, sent, said, js="() => [window.mamlSketches()]")
        clearing.click(lambda: "", None, said, js="() => { window.mamlClear(); return []; }")
    return page


def serve(page: gradio.Blocks, listener: socket.socket) -> None:
    """Serve the page at a socket that listens, until the process is interrupted."""
    warnings.filterwarnings("ignore", module="gradio")  # of its packages' next releases
    app = gradio.mount_gradio_app(FastAPI(openapi_url=None), page, path="/", ssr_mode=False)

    async def with_policy(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], POLICY]
            await send(message)

        await app(scope, receive, send_with_policy)

    # An open page holds a connection, which would hold up the end.
    settings = uvicorn.Config(with_policy, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(settings).run(sockets=[listener])

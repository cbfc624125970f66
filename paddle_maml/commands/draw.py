"""The page to draw on, once the command's options are known."""

from __future__ import annotations

import ipaddress
import socket
from importlib import metadata

from ..errors import UserError
from .classify import chosen_classifier

#: The oldest release of Gradio that loads nothing from other hosts, and the first that is not known to work.
GRADIO = (6, 18), (7, 0)


def require_gradio() -> None:
    """UserError unless there is a Gradio that can show the page; it is not imported."""
    oldest, beyond = (".".join(map(str, release)) for release in GRADIO)
    what_to_do = f"pip install 'gradio>={oldest},<{beyond}', for Python 3.10 or newer."
    try:
        found = metadata.version("gradio")
    except metadata.PackageNotFoundError:
        raise UserError(f"The page needs the package gradio, which is missing: {what_to_do}") from None
    if not GRADIO[0] <= tuple(map(int, found.split(".")[:2])) < GRADIO[1]:
        raise UserError(f"The page cannot be shown by gradio {found}: {what_to_do}")


def run(asked: dict, given: dict) -> None:
    """Serve the page until the process is interrupted."""
    require_gradio()
    with _listener(asked["host"], asked["port"]) as listener:
        classifier, _, _ = chosen_classifier(asked["pretrained"], asked["weights"], given)
        if classifier.settings.in_channels != 1:
            raise UserError(
                f"--weights is of images with {classifier.settings.in_channels} channels, but drawings are "
                "grey: name other weights."
            )
        # Here, because Gradio takes seconds to import, and a mistake in the options should not wait.
        from ..page.app import application, serve

        page = application(classifier)
        host, port = listener.getsockname()[:2]
        address = ipaddress.ip_address(host)
        if not address.is_loopback:
            print("Whoever reaches this machine can use the page.")
        print(
            f"Draw at http://{f'[{host}]' if address.version == 6 else host}:{port}/ (Ctrl-C ends it).",
            flush=True,
        )
        serve(page, listener)


def _listener(host, port):
    """A socket that listens there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"The page cannot be served at --host {host!r}, --port {port} ({why}): choose another one."
        ) from None

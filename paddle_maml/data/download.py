"""Downloading a file.

Not with paddle.utils.download.get_path_from_url (2.6 and 3.3 alike): it waits for ever on a host that stops
answering, leaves the half file or the file with the wrong checksum behind, and under paddle.distributed all
ranks but one wait for ever when it fails.
"""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.request

MAX_BYTES = 1 << 26
_PIECE = 1 << 16


def fetch(url: str, md5: str, attempts: int = 3, timeout: float = 20.0, pause: float = 2.0) -> bytearray:
    """Downloads a file of at most `MAX_BYTES` into memory, with its progress on the error output.

    Args:
        url: http, https or file.
        md5: what the MD5 of the content must be, in hexadecimal digits.
        attempts: how often it is tried.
        timeout: seconds after which an attempt has failed in which less than 64 KiB came.
        pause: seconds between attempts.

    Returns:
        The content, of the right MD5.

    Raises:
        OSError, ValueError, http.client.HTTPException: what went wrong in the last attempt.
    """
    for attempt in range(1, attempts + 1):
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                data = _read_with_progress(response, url, timeout)
            found = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if found == md5:
                return data
            raise ValueError(f"{len(data)} bytes with MD5 {found} instead of {md5}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            if attempt == attempts:
                raise
            print(f"{url}: {error}; trying again", file=sys.stderr)
            time.sleep(pause)


def _read_with_progress(response, url, timeout):
    total = int(response.headers.get("Content-Length") or 0)
    data, shown, counted, since = bytearray(), 0, 0, time.monotonic()
    while len(data) <= MAX_BYTES:
        chunk = response.read1(_PIECE)  # at once what there is: a byte now and then would be waited for
        if not chunk:
            return data
        data += chunk
        now = time.monotonic()
        if len(data) - counted >= _PIECE:
            counted, since = len(data), now
        elif now - since > timeout:
            raise TimeoutError(f"less than {_PIECE} bytes in {timeout:g} seconds")
        if len(data) - shown >= 1 << 20 or len(data) == total:
            shown = len(data)
            print(
                f"{url}: {shown / 1e6:.1f}" + (f" of {total / 1e6:.1f} MB" if total else " MB"),
                file=sys.stderr,
            )
    raise ValueError(f"more than {MAX_BYTES} bytes")

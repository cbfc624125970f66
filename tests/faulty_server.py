"""A server on this machine whose answers go wrong in the ways that are asked for."""

import http.server
import threading
import time


class FaultyServer:
    """Serves the files of a folder; `faults` are what happens to the next requests, `asked` what they
    were."""

    def __init__(self, folder):
        self.faults, self.asked = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                data = (folder / self.path.lstrip("/")).read_bytes()
                fault = outer.faults.pop(0) if outer.faults else None
                if fault == "refuse":
                    return self.send_error(503)
                if fault == "nonsense":
                    return self.wfile.write(b"\0\xff" * 500)
                if fault == "silence":
                    return time.sleep(2)
                self.send_response(302 if fault == "circle" else 200)
                if fault == "circle":
                    self.send_header("Location", self.path)
                if fault != "endless":
                    self.send_header("Content-Length", str(len(data) * (2 if fault == "short" else 1)))
                self.end_headers()
                if fault == "stall":
                    self.pieces(data[:100], pause=0)
                    time.sleep(2)
                elif fault == "drip":
                    self.pieces(data[:50], pause=0.1)
                elif fault == "endless":
                    self.pieces([b"x" * (1 << 16)] * 2000, pause=0)
                elif fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                elif fault != "circle":
                    self.wfile.write(data[::-1] if fault == "spoil" else data)

            def pieces(self, pieces, pause):
                for piece in pieces:
                    self.wfile.write(piece if isinstance(piece, bytes) else bytes([piece]))
                    self.wfile.flush()
                    time.sleep(pause)

            def handle(self):
                try:
                    super().handle()
                except OSError:  # who asked has gone
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

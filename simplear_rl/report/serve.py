"""The report over HTTP, for this machine alone."""

import re
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from simplear_rl.errors import UserError
from simplear_rl.report.page import render

LOOPBACK = "127.0.0.1"
OURS = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")


def report_server(folders: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server of the page, on loopback; it is made anew for every visit.

    Raises:
        UserError: the port cannot be had, or a folder is no run.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere whose name leads here must not read this one.
            if not OURS.fullmatch(self.headers.get("Host", "")):
                self.send_error(403, "only as 127.0.0.1 or localhost")
            elif self.path != "/":
                self.send_error(404)
            else:
                self._page()

        def _page(self) -> None:
            try:
                status, kind, body = 200, "text/html", render(folders).encode()
            except Exception as error:  # a folder may be damaged, or go away, meanwhile
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                status, kind, body = 500, "text/plain", text.encode(errors="replace")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing is said of visits."""

    render(folders)
    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"--serve {port}: this port cannot be had: {error}; choose another one") from error


def serve(folders: Sequence[Path], port: int) -> None:
    """Serve the page until the process ends. Raises UserError, see `report_server`."""
    with report_server(folders, port) as server:
        print(f"http://{LOOPBACK}:{server.server_address[1]}, until Ctrl-C", flush=True)
        server.serve_forever()

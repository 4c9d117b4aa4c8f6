"""The page on which pairs are labelled, for browsers on this machine alone."""

import json
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from simplear_rl.errors import UserError
from simplear_rl.labelling.labels import LABELS, Labels

LOOPBACK = "127.0.0.1"
LONGEST_BODY = 1000  # bytes


def label_server(labels: Labels, port: int) -> ThreadingHTTPServer:
    """A server for `labels` on the loopback address; `serve_forever` runs it.

        GET  /                     the page
        GET  /next?SESSION         see Labels.next
        GET  /image/NUMBER/SIDE    an image of a pair: PNG
        POST /label, /undo         JSON {"session": ..., "pair": ..., "choice": ...}; 409 if there is nothing to do

    Requests must name this machine as their host and carry JSON as JSON, so that pages of other sites cannot send them.

    Raises:
        UserError: the port is taken.
    """
    try:
        return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, labels))
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}; choose another port, or port=0 for a free one") from error


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, labels: Labels, *args: Any):
        self.labels = labels
        super().__init__(*args)

    def do_GET(self) -> None:
        if not self._is_local():
            return
        path, _, query = self.path.partition("?")
        match path.split("/")[1:]:
            case [""]:
                page = resources.files(__package__).joinpath("page.html").read_bytes()
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
            case ["next"] if query and self.headers.get("Sec-Fetch-Site") != "cross-site":  # it reserves a pair
                self._json(HTTPStatus.OK, self.labels.next(query))
            case ["image", number, "left" | "right" as side] if self._is_pair(number):
                self._answer(HTTPStatus.OK, self.labels.image(int(number), side).read_bytes(), "image/png")
            case _:
                self._json(HTTPStatus.NOT_FOUND, {"error": "not found"})

    def do_POST(self) -> None:
        if not self._is_local():
            return
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 <= length <= LONGEST_BODY or self.headers.get_content_type() != "application/json":
                raise ValueError(f"expected JSON of at most {LONGEST_BODY} bytes")
            request = json.loads(self.rfile.read(length))
            session = request["session"]
            if not isinstance(session, str) or not session:
                raise ValueError("expected the text `session`")
            if self.path == "/label":
                if request["choice"] not in LABELS or not self._is_pair(str(request["pair"])):
                    raise ValueError("expected a pair and one of " + ", ".join(LABELS))
                done = self.labels.label(session, request["pair"], request["choice"])
            elif self.path == "/undo":
                done = self.labels.undo(session)
            else:
                self._json(HTTPStatus.NOT_FOUND, {"error": "not found"})
                return
        except (ValueError, KeyError, TypeError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        except UserError as error:  # the disk refuses
            self._json(HTTPStatus.INSUFFICIENT_STORAGE, {"error": str(error)})
            return
        self._json(HTTPStatus.OK if done else HTTPStatus.CONFLICT, {})

    def log_message(self, *args: Any) -> None:
        """Say nothing of requests."""

    def _is_local(self) -> bool:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            return True
        self._json(HTTPStatus.FORBIDDEN, {"error": "another host"})
        return False

    def _is_pair(self, number: str) -> bool:
        return number.isdecimal() and int(number) < len(self.labels.pairs)

    def _json(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        self._answer(status, json.dumps(values).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

"""The load of `python -m simplear_rl.timings.serve`."""

import asyncio
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import httpx
import pytest

from simplear_rl.timings.serve import load


class Loading(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(503)

    def log_message(self, *_):
        pass


def test_a_server_that_answers_no_client_ends_the_load():
    with HTTPServer(("127.0.0.1", 0), Loading) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            asyncio.run(asyncio.wait_for(load(f"http://127.0.0.1:{server.server_port}", 2, 1.0), timeout=30))
        server.shutdown()

"""Serves a policy: OpenAI's Images API, pictures that appear row by row, and a page to draw with.

It listens on this machine alone unless --host says otherwise; then SIMPLEAR_API_KEY has to be set, to a key or to
several, separated by commas.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.serving import ServeConfig

EXAMPLES = """\
  python -m simplear_rl.serve                                   the demo's policy, at http://127.0.0.1:8000
  python -m simplear_rl.serve --config configs/simplear_0.5b/serve.yaml   a published policy, on one GPU
  python -m simplear_rl.serve --follow runs/demo/grpo           the newest checkpoint of a training that runs
  export SIMPLEAR_API_KEY=$(openssl rand -hex 32); python -m simplear_rl.serve --host 0.0.0.0"""
OPTIONS = {
    "--model": "policy",
    "--tokenizer": "tokenizer",
    "--follow": "follow",
    "--engine": "engine.type",
    "--host": "host",
    "--port": "port",
}

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(ServeConfig, "serve", EXAMPLES, options=OPTIONS, on_ray=False)

import logging
import signal
import socket
from contextlib import redirect_stdout, suppress
from io import StringIO

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve import Application

from actors.connection import connect
from actors.serving import application
from simplear_rl.errors import UserError
from simplear_rl.serving.room import served_policy

APPLICATION = "simplear"


def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: the policy cannot be served, see check_policy; others could reach the server and there is no key;
            the address is taken, or the Ray cluster serves already.
    """
    deployed = application(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    connect()
    _require_unused()
    _require_free(config.host, config.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, with status 0
    with suppress(KeyboardInterrupt):
        host = f"[{config.host}]" if ":" in config.host else config.host
        policy = served_policy(config)
        if config.follow and policy == config.policy:
            print(f"{config.follow}: no intact checkpoint is there yet; until then `policy` is served", flush=True)
        print(f"{policy}: loading; http://{host}:{config.port} answers 503 until it is there", flush=True)
        try:
            _run(config, deployed)
            print(f"http://{host}:{config.port} draws; Ctrl-C ends it", flush=True)
            signal.pause()
        finally:
            with redirect_stdout(StringIO()):  # Ray says that Serve's controller has ended before it answered
                ray_serve.shutdown()


def _run(config: ServeConfig, deployed: Application) -> None:
    try:
        ray_serve.start(http_options={"host": config.host, "port": config.port})
        ray_serve.run(deployed, name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:  # an actor's constructor fails again and again
        raise UserError(f"the server does not start: {error}") from error


def _require_unused() -> None:
    """Serve has one address on a cluster, and one set of applications, that whoever uses it would change."""
    if there := ray_serve.status().applications:
        raise UserError(
            f"this Ray cluster serves already: {', '.join(there)}. End that with `serve shutdown`, or take a cluster "
            "of your own with RAY_ADDRESS=local"
        )
    ray_serve.shutdown()  # what is left of one that ended, with its address


def _require_free(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on: {error.strerror}; choose another --port") from error


if __name__ == "__main__":
    command_line.run(serve)

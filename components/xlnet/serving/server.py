"""The server: health, a description, and predictions over HTTP/1.1 with JSON.

It follows the contract of Vertex AI's prediction containers (``AIP_HTTP_PORT``, ``AIP_HEALTH_ROUTE``,
``AIP_PREDICT_ROUTE``, ``AIP_STORAGE_URI``) and KServe's V1 protocol (``/v1/models/NAME:predict``). On SIGTERM it
accepts no more connections, answers started requests, and ends with status 0.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from xlnet.registry import Registry, open_registry
from xlnet.registry.locate import model_directory, short_name
from xlnet.serving.batcher import Batcher
from xlnet.serving.connections import PredictionServer
from xlnet.serving.handler import Handler
from xlnet.serving.model import open_model


def listen(host: str, port: int, environment: dict[str, str]) -> PredictionServer:
    """Open the port. Add a model and a batcher before serving."""
    return PredictionServer(host, port, environment, Handler)


def serve(
    reference: str,
    host: str,
    port: int,
    environment: dict[str, str],
    registry: Callable[[], Registry] = open_registry,
    precision: str = "auto",
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Args:
        reference: a directory, a ``gs://`` URI, or a registered model, see :func:`model_directory`.
        host: the address to listen on.
        port: the port to listen on; 0 chooses a free one.
        environment: environment variables, including Vertex AI's.
        registry: opens the registry, if it is needed.
        precision: ``auto`` (float32), ``float32``, ``bfloat16`` or ``int8``: type of a classifier's products, or of a
            language model's weights.

    Raises:
        UserError: there is no such model, the port is in use, or the processor lacks the precision.
    """
    server = listen(host, port, environment)
    with _ended_by_signals(server):
        begun = time.perf_counter()
        directory = model_directory(reference, registry)
        name = environment.get("XLNET_SERVED_NAME") or short_name(reference)
        server.model = open_model(directory, name, precision)
        server.model.warm_up()
        with Batcher(server.model.answers) as server.batcher:
            address = f"http://{host}:{server.server_address[1]}"
            print(f"serving '{reference}' on {address} after {time.perf_counter() - begun:.1f} s", file=sys.stderr)
            server.serve_forever(poll_interval=0.1)
            server.server_close()


@contextlib.contextmanager
def _ended_by_signals(server: PredictionServer) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C shut the server down; before it serves, they end the process at once."""

    def end(number: int, frame: Any) -> None:
        if not hasattr(server, "batcher"):
            raise SystemExit(128 + number)
        threading.Thread(target=server.stop).start()  # stop() waits for the loop that runs in this thread

    earlier = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)

"""Serves the application with uvicorn on a socket that is open before the address is printed."""

import contextlib
import signal
import socket
import threading
from types import FrameType

import uvicorn

from xlnet.errors import UserError
from xlnet_pipeline.ui.application import application
from xlnet_pipeline.ui.safety import LOOPBACK
from xlnet_pipeline.ui.site import Site

__all__ = ["LOOPBACK", "address", "listen", "serve"]

GRACE = 6  # seconds for which a stopping server waits for open connections


class PageServer(uvicorn.Server):
    """Ends open event streams when the server stops, because uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self.site = site

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the server at SIGTERM and Ctrl-C."""
        self.site.stopping = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Raises:
        UserError: the address or the port cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.socket(family)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        text = f"cannot listen on {host}:{port}: {why}; choose another port: xlnet-pipeline ui --port 0"
        raise UserError(text) from None
    return opened


def address(host: str, opened: socket.socket) -> str:
    """Return the URL of an open socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{opened.getsockname()[1]}"


def serve(site: Site, opened: socket.socket, token: str = "") -> None:
    """Answer requests until SIGTERM or Ctrl-C."""
    threading.Thread(target=site.rows, daemon=True).start()  # so that the first page need not wait for all records
    config = uvicorn.Config(
        application(site, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more, after it has stopped
    try:
        with contextlib.suppress(KeyboardInterrupt):
            PageServer(config, site).run(sockets=[opened])
    finally:
        site.close()
        opened.close()

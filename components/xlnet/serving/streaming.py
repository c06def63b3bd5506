"""Sends records as server-sent events while they are made, and notices when a client disconnects."""

import json
import select
import socket
from collections.abc import Callable, Iterable
from typing import Any

Send = Callable[[bytes], Any]


def event(record: dict[str, Any]) -> bytes:
    """Format a record as a server-sent event."""
    return b"data: " + json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n\n"


def chunks(contents: Iterable[bytes], send: Send, chunked: bool) -> None:
    """Send contents one by one, in HTTP/1.1's chunks or, for older clients, without chunks.

    Raises:
        ConnectionError: the client has disconnected.
    """
    for content in contents:
        send(b"%x\r\n%s\r\n" % (len(content), content) if chunked else content)
    if chunked:
        send(b"0\r\n\r\n")


def has_gone(connection: socket.socket) -> bool:
    """Whether the client has closed its connection while it waited for an answer."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True

"""Sends records while they are made, as server-sent events, and notices that a client has gone."""

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
    """Send contents one by one, in HTTP/1.1's chunks or, for older clients, as they are.

    Raises:
        ConnectionError: the client has gone; nothing more is made.
    """
    for content in contents:
        send(b"%x\r\n%s\r\n" % (len(content), content) if chunked else content)
    if chunked:
        send(b"0\r\n\r\n")


def has_gone(connection: socket.socket) -> bool:
    """Whether a client has closed its connection, on which it waits for an answer."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):
        return True

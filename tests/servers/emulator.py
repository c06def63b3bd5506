"""The storage emulator, made to answer as Google's server does where the package's own differs.

It takes the body of a media upload as bytes, whatever their type, an empty one too; and it lets as many connections
wait as clients open at once. ``python tests/servers/emulator.py PORT`` runs it until standard input ends.
"""

import http.server
import sys
from typing import Any

from gcp_storage_emulator import server as emulator

_read_data = emulator._read_data


def _read_any_data(handler: Any, query: dict[str, list[str]]) -> Any:
    if query.get("uploadType") == ["media"]:
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    return _read_data(handler, query)


class _PatientServer(http.server.HTTPServer):
    request_queue_size = 128


def create_server(port: int, bucket: str | None = None) -> Any:
    """An emulator on this machine, which keeps its objects in memory and has this bucket; not started yet."""
    emulator._read_data = _read_any_data
    emulator.server.HTTPServer = _PatientServer
    return emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)


if __name__ == "__main__":
    server = create_server(int(sys.argv[1]))
    server.start()
    sys.stdin.read()  # until whoever started this process ends, killed or not
    server.stop()

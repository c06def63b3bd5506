"""A Cloud Storage JSON API server that keeps its word: preconditions, generations, checksums, resumable uploads.

gcp-storage-emulator ignores preconditions and checksums; what depends on them is tested here. Faults are those of
:class:`servers.web.WebServer`; ``latency`` seconds go by before each answer, as they do on the way to a bucket.
"""

import base64
import fnmatch
import itertools
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import google_crc32c

from servers.web import Refused, Request, WebServer

BUCKET = r"/storage/v1/b/(?P<bucket>[^/]+)"
OBJECT = r"/o/(?P<name>.+)"
CONDITIONS = ("ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch")


def crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


@dataclass
class Stored:
    """One generation of an object."""

    name: str
    content: bytes
    generation: int
    crc32c: str
    parts: int = 1  # objects that it was composed of
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """A resumable upload that has begun."""

    bucket: str
    metadata: dict[str, Any]
    query: dict[str, str]
    content: bytearray = field(default_factory=bytearray)
    made: dict[str, Any] | None = None  # the object, once all of it has arrived


class StrictStorage(WebServer):
    """State: objects by bucket and name, resumable sessions."""

    def __init__(self, *buckets: str, latency: float = 0.0) -> None:
        super().__init__()
        self.objects: dict[str, dict[str, Stored]] = {name: {} for name in buckets or ("bucket",)}
        self.sessions: dict[str, Session] = {}
        self.latency = latency
        self.waiting = self.most_waiting = 0  # requests whose latency goes by, now and ever
        self._numbers = itertools.count(1_700_000_000_000_001)
        for method, path, work in (
            ("GET", BUCKET + "/o", self.list_objects),
            ("GET", BUCKET + OBJECT, self.get_object),
            ("DELETE", BUCKET + OBJECT, self.delete_object),
            ("POST", BUCKET + r"/o/(?P<name>.+)/compose", self.compose),
            ("GET", "/download" + BUCKET + OBJECT, self.media),
            ("POST", "/upload" + BUCKET + "/o", self.insert),
            ("PUT", "/upload" + BUCKET + "/o", self.piece),
        ):
            self.route(method, path, work)

    def json_only(self, path: str) -> bool:
        return not path.startswith("/upload/")

    def answer(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        with self.lock:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        time.sleep(self.latency)
        with self.lock:
            self.waiting -= 1
        status, content, headers = super().answer(request)
        if isinstance(content, tuple):  # an answer that says its own status and headers
            return content[0], content[1], content[2]
        return status, content, headers

    def bucket(self, request: Request) -> dict[str, Stored]:
        if request.part("bucket") not in self.objects:
            raise Refused(404, "The specified bucket does not exist.")
        return self.objects[request.part("bucket")]

    def stored(self, request: Request) -> Stored:
        found = self.bucket(request).get(request.part("name"))
        if found is None or request.query.get("generation") not in (None, str(found.generation)):
            raise Refused(404, f"No such object: {request.part('bucket')}/{request.part('name')}")
        return found

    @staticmethod
    def hold_to(conditions: dict[str, str], found: Stored | None) -> None:
        """412 unless every precondition holds; generation 0 is that of an object that is not there."""
        generation = found.generation if found else 0
        if unknown := [key for key in conditions if key.startswith("if") and key not in CONDITIONS]:
            raise Refused(400, f"unknown precondition {unknown[0]}")
        for key, wrong in (
            ("ifGenerationMatch", lambda given: given != generation),
            ("ifGenerationNotMatch", lambda given: given == generation),
            ("ifMetagenerationMatch", lambda given: given != 1),
        ):
            if key in conditions and wrong(int(conditions[key])):
                raise Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def put(self, bucket: str, metadata: dict[str, Any], content: bytes, query: dict[str, str], parts: int = 1) -> Any:
        """Make an object's next generation."""
        name = metadata.get("name") or query.get("name")
        if not name:
            raise Refused(400, "Required object name")
        self.hold_to(query, self.objects[bucket].get(name))
        checksum = crc32c(content)
        if metadata.get("crc32c", checksum) != checksum:
            raise Refused(400, f"Provided CRC32C {metadata['crc32c']} doesn't match calculated CRC32C {checksum}.")
        made = Stored(name, content, next(self._numbers), checksum, parts, metadata.get("metadata", {}))
        self.objects[bucket][name] = made
        return self.resource(bucket, made)

    def resource(self, bucket: str, found: Stored) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{found.name}/{found.generation}",
            "name": found.name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "size": str(len(found.content)),
            "crc32c": found.crc32c,
            "metadata": found.metadata,
            "mediaLink": f"{self.url}/download/storage/v1/b/{bucket}/o/{found.name}?generation={found.generation}",
        }

    def list_objects(self, request: Request) -> Any:
        prefix, pattern = request.query.get("prefix", ""), request.query.get("matchGlob")
        names = sorted(name for name in self.bucket(request) if name.startswith(prefix))
        names = [name for name in names if pattern is None or fnmatch.fnmatchcase(name, pattern)]
        names = [name for name in names if name > request.query.get("pageToken", "")]
        size = min(int(request.query.get("maxResults") or 1000), 1000)
        more = {"nextPageToken": names[size - 1]} if len(names) > size else {}
        items = [self.resource(request.part("bucket"), self.bucket(request)[name]) for name in names[:size]]
        return {"kind": "storage#objects", "items": items, **more}

    def get_object(self, request: Request) -> Any:
        if request.query.get("alt") == "media":
            return self.media(request)
        found = self.stored(request)
        self.hold_to(request.query, found)
        return self.resource(request.part("bucket"), found)

    def media(self, request: Request) -> Any:
        found = self.stored(request)
        self.hold_to(request.query, found)
        headers = {"X-Goog-Generation": str(found.generation), "X-Goog-Hash": f"crc32c={found.crc32c}"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return 200, found.content, headers
        start, size = int(asked[1]), len(found.content)
        end = min(int(asked[2]) if asked[2] else size - 1, size - 1)
        if start >= size:
            return 416, {"error": {"code": 416, "message": "Requested range not satisfiable"}}, {}
        return 206, found.content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}

    def delete_object(self, request: Request) -> Any:
        found = self.stored(request)
        self.hold_to(request.query, found)
        del self.bucket(request)[found.name]
        return 204, "", {}

    def compose(self, request: Request) -> Any:
        there, parts = self.bucket(request), []
        if len(request.body["sourceObjects"]) > 32:
            raise Refused(400, "The number of source components provided exceeds the maximum (32).")
        for source in request.body["sourceObjects"]:
            found = there.get(source["name"])
            if found is None or str(source.get("generation") or found.generation) != str(found.generation):
                raise Refused(404, f"Object {source['name']} not found.")
            self.hold_to(source.get("objectPreconditions", {}), found)
            parts.append(found)
        metadata = {**request.body.get("destination", {}), "name": request.part("name")}
        content = b"".join(part.content for part in parts)
        count = sum(part.parts for part in parts)
        return self.put(request.part("bucket"), metadata, content, request.query, count)

    def insert(self, request: Request) -> Any:
        self.bucket(request)
        kind, bucket = request.query.get("uploadType"), request.part("bucket")
        if kind == "multipart":
            metadata, content = multipart(request)
            return self.put(bucket, metadata, content, request.query)
        if kind == "media":
            told = re.search(r"crc32c=([^,]+)", request.headers.get("x-goog-hash", ""))
            return self.put(bucket, {"crc32c": told[1]} if told else {}, request.body or b"", request.query)
        session = f"session-{next(self._numbers)}"
        metadata = json.loads(request.body or b"{}")
        self.hold_to(request.query, self.objects[bucket].get(metadata.get("name") or request.query.get("name", "")))
        self.sessions[session] = Session(bucket, metadata, request.query)
        place = f"{self.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
        return 200, "", {"Location": place}

    def piece(self, request: Request) -> Any:
        """The next piece of a resumable upload, or the question how much has arrived (``bytes */SIZE``)."""
        session = self.sessions.get(request.query.get("upload_id", ""))
        if session is None:
            raise Refused(404, "no such upload")
        asked = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers["content-range"])
        if asked is None:
            raise Refused(400, f"invalid Content-Range {request.headers['content-range']}")
        if session.made:
            return session.made  # the answer to the last piece was lost
        if asked[1] is not None:
            if int(asked[1]) > len(session.content):
                raise Refused(503, f"bytes {asked[1]} on were sent, {len(session.content)} are next")
            session.content += (request.body or b"")[len(session.content) - int(asked[1]) :]
        if asked[3] != "*" and len(session.content) == int(asked[3]):
            session.made = self.put(session.bucket, session.metadata, bytes(session.content), session.query)
            return session.made
        arrived = {"Range": f"bytes=0-{len(session.content) - 1}"} if session.content else {}
        return 308, "", arrived


def multipart(request: Request) -> tuple[dict[str, Any], bytes]:
    """Metadata and content of a multipart/related body."""
    match = re.search(r'boundary="?([^";]+)', request.headers.get("content-type", ""))
    if match is None:
        raise Refused(400, "no boundary")
    mark = f"--{match[1]}".encode()
    _, first, second, _ = bytes(request.body).split(mark, 3)
    metadata = json.loads(first.split(b"\r\n\r\n", 1)[1])
    return metadata, second.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")

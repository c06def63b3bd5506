"""gs:// directories moved by us against google-cloud-storage: one object at a time, and its own transfer manager.

    python tests/benchmarks/transfer_speed.py [--objects 1000] [--megabytes 1] [--repeats 3] [--json FILE]

Interleaved, on two servers: gcp-storage-emulator, which answers one request at a time in one Python process, and a
server of our own that answers many at once, each after a delay as on the way to a real bucket (``--latency``). One by
one means one client, one connection, ``upload_from_filename`` and ``download_to_filename`` in a loop. The transfer
manager gets as many threads as ours has, and, for comparison, its default of processes (``--processes``). Every
download is into an empty directory, which is removed at once: the disk is not still writing one copy while the next is
timed.

Prints medians, the processor time of both sides for each object, and how many times faster ours is with the least and
most of repeats. Files of 64 MB (``--objects 4 --megabytes 64``) are what the manager moves in ranges.
"""

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SERVER = (
    "import sys, time; from servers.strict_storage import StrictStorage\n"
    "with StrictStorage('bucket', latency=float(sys.argv[1])) as server: print(server.url, flush=True); time.sleep(1e6)"
)


@contextlib.contextmanager
def emulator() -> Iterator[tuple[str, int]]:
    """Address and process of gcp-storage-emulator."""
    import pytest
    from servers import storage

    with pytest.MonkeyPatch.context() as patch, storage.bucket_server(patch):
        children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True)
        yield os.environ["STORAGE_EMULATOR_HOST"], int(children.stdout.split()[0])


@contextlib.contextmanager
def delayed(seconds: float) -> Iterator[tuple[str, int]]:
    """Address and process of our own server."""
    folder = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", SERVER, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert process.stdout
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()


def processor_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object], server: int) -> dict[str, float]:
    """Wall time, and processor time of this process and the server."""
    begun, own, other = time.perf_counter(), time.process_time(), processor_seconds(server)
    work()
    return {
        "seconds": time.perf_counter() - begun,
        "client": time.process_time() - own,
        "server": processor_seconds(server) - other,
    }


def copies(source: Path, names: list[str], worker: str) -> dict[str, Callable[[Path], object]]:
    """The six ways, by what is moved and by whom; each is given an empty directory."""
    from google.cloud.storage import transfer_manager

    from xlnet.data import gcs, objects

    bucket: Any = gcs.storage_client().bucket("bucket")

    def up(empty: Path) -> None:
        for name in names:
            bucket.blob(f"one/{name}").upload_from_filename(str(source / name))

    def down(empty: Path) -> None:
        for name in names:
            bucket.blob(f"one/{name}").download_to_filename(str(empty / name))

    crowd = {"worker_type": worker, "max_workers": gcs.WORKERS, "raise_exception": True}
    large = (source / names[0]).stat().st_size > gcs.CHUNK

    def up_managed(empty: Path) -> None:
        prefix = f"{empty.name}/managed/"
        if not large:
            transfer_manager.upload_many_from_filenames(
                bucket, names, source_directory=str(source), blob_name_prefix=prefix, **crowd
            )
            return
        for name in names:
            blob = bucket.blob(prefix + name)
            blob.upload_from_filename(str(source / name))

    def down_managed(empty: Path) -> None:
        if not large:
            transfer_manager.download_many_to_path(
                bucket, names, destination_directory=str(empty), blob_name_prefix="one/", **crowd
            )
            return
        for name in names:
            some = {key: value for key, value in crowd.items() if key != "raise_exception"}
            blob = bucket.blob(f"one/{name}")
            blob.reload()
            transfer_manager.download_chunks_concurrently(blob, str(empty / name), chunk_size=gcs.CHUNK, **some)

    return {
        "upload, one by one": up,
        "upload, manager": up_managed,
        "download, manager": down_managed,
        "upload, ours": lambda empty: objects.upload(source, f"gs://bucket/{empty.name}"),
        "download, one by one": down,
        "download, ours": lambda empty: objects.download("gs://bucket/one", empty),
    }


def measure(count: int, size: int, repeats: int, server: int, worker: str) -> dict[str, Any]:
    """Medians of each way, and how many times faster ours is."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        names = [f"{number:05d}.bin" for number in range(count)]
        for name in names:
            (source / name).write_bytes(os.urandom(size))
        ways = copies(source, names, worker)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, work in ways.items():
                with tempfile.TemporaryDirectory() as empty:
                    seen[name].append(timed(functools.partial(work, Path(empty)), server))
    found: dict[str, Any] = {
        name: {key: round(statistics.median(one[key] for one in many), 3) for key in many[0]}
        for name, many in seen.items()
    }
    for what in ("upload", "download"):
        for other in ("one by one", "manager"):
            pairs = zip(seen[f"{what}, {other}"], seen[f"{what}, ours"], strict=True)
            ratios = sorted(slow["seconds"] / fast["seconds"] for slow, fast in pairs)
            spread = [round(x, 2) for x in (statistics.median(ratios), ratios[0], ratios[-1])]
            found[f"{what}, × {other}"] = spread
    return found


def main() -> None:
    """Measure on both servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer of our own server")
    parser.add_argument("--processes", action="store_true", help="the transfer manager's default of workers")
    parser.add_argument("--without-emulator", action="store_true", help="only our own server")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    worker = "process" if options.processes else "thread"
    results: dict[str, Any] = {}
    servers = [(f"{options.latency:g} s away", delayed(options.latency))]
    if not options.without_emulator:
        servers.insert(0, ("emulator", emulator()))
    for title, server in servers:
        with server as (url, pid):
            os.environ["STORAGE_EMULATOR_HOST"] = url
            size = int(options.megabytes * 2**20)
            found = results[title] = measure(options.objects, size, options.repeats, pid, worker)
        print(f"{title}: {options.objects} objects of {options.megabytes:g} MB, median of {options.repeats}")
        for name, one in found.items():
            if isinstance(one, list):
                print(f"  {name:22} {one[0]:8.2f}   ({one[1]} to {one[2]})")
                continue
            each = {key: 1000 * one[key] / options.objects for key in ("client", "server")}
            shown = f"client {each['client']:.1f} ms, server {each['server']:.1f} ms of processor time an object"
            print(f"  {name:22} {one['seconds']:8.2f} s  {shown}")
    if options.json:
        Path(options.json).write_text(json.dumps({"cores": os.cpu_count(), **results}, indent=2))


if __name__ == "__main__":
    main()

"""gs:// directories copied by us, by google-cloud-storage's transfer manager, and one object at a time.

    python tests/benchmarks/transfer_speed.py [--objects 1000] [--megabytes 1] [--repeats 3] [--json FILE]

Two servers: gcp-storage-emulator, which answers one request at a time in one Python process, and a server of our own
that answers many at once, each after a delay as on the way to a real bucket (``--latency``). One by one means one
client, one connection, ``upload_from_filename`` and ``download_to_filename`` in a loop. The transfer manager gets as
many threads as ours has, or its default of processes (``--processes``).

What makes it fair: each contender does the same work (list the directory, copy it, check each checksum). All files are
in memory where there is ``/dev/shm``, because a disk still writes the last contender's files while the next one is
timed. Each round begins with another contender, and the first round, which opens connections, does not count. Objects
that were uploaded are deleted, so that no listing grows. Clocks of a busy machine say little, so the processor time of
the client is compared too: Python's lock lets only one thread of the client compute, so where the network is fast
enough, that time decides.

Prints medians for each way, and how many times more time the others need than ours, with the least and most of the
repeats. Files of 64 MB (``--objects 4 --megabytes 64``) are what the manager moves in ranges.
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


def copies(source: Path, names: list[str], worker: str, alone: bool) -> dict[str, Callable[[Path], object]]:
    """The ways, by what is moved and by whom; each is given an empty directory, whose name is its prefix."""
    from google.cloud.storage import transfer_manager

    from xlnet.data import gcs, objects

    client = gcs.storage_client()
    bucket: Any = client.bucket("bucket")
    workers = {"worker_type": worker, "max_workers": gcs.WORKERS}
    large = (source / names[0]).stat().st_size > gcs.CHUNK

    def listed(prefix: str) -> list[Any]:
        return list(client.list_blobs("bucket", prefix=f"{prefix}/"))

    def up(empty: Path) -> None:
        listed(empty.name)
        for name in names:
            bucket.blob(f"{empty.name}/{name}").upload_from_filename(str(source / name))

    def down(empty: Path) -> None:
        for blob in listed("given"):
            blob.download_to_filename(str(empty / Path(blob.name).name))

    def up_managed(empty: Path) -> None:
        listed(empty.name)
        transfer_manager.upload_many_from_filenames(
            bucket,
            names,
            source_directory=str(source),
            blob_name_prefix=f"{empty.name}/",
            raise_exception=True,
            **workers,
        )

    def down_managed(empty: Path) -> None:
        found = listed("given")
        if not large:
            pairs = [(blob, str(empty / Path(blob.name).name)) for blob in found]
            transfer_manager.download_many(pairs, raise_exception=True, **workers)
            return
        for blob in found:
            path = str(empty / Path(blob.name).name)
            transfer_manager.download_chunks_concurrently(blob, path, chunk_size=gcs.CHUNK, **workers)

    objects.upload(source, "gs://bucket/given")
    ways: dict[str, Callable[[Path], object]] = {
        "upload, ours": lambda empty: objects.upload(source, f"gs://bucket/{empty.name}"),
        "upload, manager": up_managed,
        "download, ours": lambda empty: objects.download("gs://bucket/given", empty),
        "download, manager": down_managed,
    }
    return ways | ({"upload, one by one": up, "download, one by one": down} if alone else {})


def measure(count: int, size: int, repeats: int, server: int, worker: str, alone: bool) -> dict[str, Any]:
    """Medians of each way, and how many times more time than ours it needs."""
    from xlnet.data import gcs, objects

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        source = Path(scratch)
        names = [f"{number:05d}.bin" for number in range(count)]
        for name in names:
            (source / name).write_bytes(os.urandom(size))
        ways = copies(source, names, worker, alone)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(repeats + 1):
            turn = number % len(ways)
            for name in [*ways][turn:] + [*ways][:turn]:
                with tempfile.TemporaryDirectory(dir=memory) as empty:
                    took = timed(functools.partial(ways[name], Path(empty)), server)
                    gcs.parallel(
                        objects.delete, [one.uri for one in objects.listing(f"gs://bucket/{Path(empty).name}/")]
                    )
                if number:
                    seen[name].append(took)
    found: dict[str, Any] = {
        name: {key: round(statistics.median(one[key] for one in many), 3) for key in many[0]}
        for name, many in seen.items()
    }
    for name in ways:
        what, _, who = name.partition(", ")
        if who == "ours":
            continue
        for key in ("seconds", "client"):
            pairs = zip(seen[name], seen[f"{what}, ours"], strict=True)
            ratios = sorted(slow[key] / fast[key] for slow, fast in pairs)
            spread = [round(x, 2) for x in (statistics.median(ratios), ratios[0], ratios[-1])]
            found[f"{name}: {key} ÷ ours"] = spread
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
    parser.add_argument("--manager-only", action="store_true", help="leave out the loops over single objects")
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
            alone = not options.manager_only
            found = results[title] = measure(options.objects, size, options.repeats, pid, worker, alone)
        print(f"{title}: {options.objects} objects of {options.megabytes:g} MB, median of {options.repeats}")
        for name, one in found.items():
            if isinstance(one, list):
                print(f"  {name:38} {one[0]:8.2f}   ({one[1]} to {one[2]})")
                continue
            each = {key: 1000 * one[key] / options.objects for key in ("client", "server")}
            shown = f"client {each['client']:.1f} ms, server {each['server']:.1f} ms of processor time an object"
            print(f"  {name:38} {one['seconds']:8.2f} s  {shown}")
    if options.json:
        Path(options.json).write_text(json.dumps({"cores": os.cpu_count(), **results}, indent=2))


if __name__ == "__main__":
    main()

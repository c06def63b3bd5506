"""Measure the pages: start, lists of 1,000 runs, memory, a graph of 2,000 nodes, and what watching costs.

python tests/benchmarks/ui_speed.py            # a minute; --tabs N opens that many event streams (default: 50)
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

RUNS, NODES = 1000, 2000


def record(number: int, running: bool) -> dict:
    """A run's record of the size that real ones have."""
    facts = {"primary_metric": "accuracy", "accuracy": 0.8, "accuracy_low": 0.75, "accuracy_high": 0.85}
    outputs = {
        "evaluation": {"uri": "/none", "type": "system.Artifact", "digest": f"sha256:{number:064x}", "metadata": facts},
    }
    part = {f"section.field_{at}": at / 3 for at in range(80)}
    steps = [
        {
            "name": name,
            "status": "SUCCEEDED",
            "seconds": 1.0,
            "inputs": part,
            "outputs": outputs if name == "evaluate" else {},
        }
        for name in ("snapshot", "preprocess", "train", "evaluate", "register")
    ]
    if running:
        steps[2] |= {"status": "RUNNING", "log": "logs/train.log"}
    when = f"2026-11-{1 + number // 60 % 28:02d}T{number // 60 % 24:02d}:{number % 60:02d}:00+00:00"
    me = psutil.Process()
    return {
        "id": f"2026{number:08d}-{number:04x}", "target": "local", "recipe_digest": "sha256:0", "created": when,
        "recipe": {"data": {"train": [f"file-{number}.csv"]}, "registry": {"name": f"model-{number % 7}", "uri": ""}},
        "status": "RUNNING" if running else "SUCCEEDED", "ended": None if running else when, "steps": steps,
        "pid": me.pid, "pid_started": _started(me.pid), "error": None,
    }  # fmt: skip


def _started(pid: int) -> str | None:
    from xlnet_pipeline.targets import processes

    return processes.started(pid)


def fill(home: Path) -> str:
    """Write RUNS records, of which the last one is running; returns its id."""
    for number in range(RUNS):
        content = record(number, running=number == RUNS - 1)
        folder = home / "runs" / content["id"]
        (folder / "logs").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(content))
    (folder / "logs" / "train.log").write_text("step 1\n")
    return content["id"]


@contextmanager
def served(home: Path) -> Iterator[tuple[psutil.Process, str, float]]:
    """The server over ``home``: its process, its address, and the seconds until its first page was there."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "xlnet_pipeline", "--home", str(home), "ui", "--no-open", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address = process.stdout.readline().strip().rstrip("/")
    get(f"{address}/api")
    try:
        yield psutil.Process(process.pid), address, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def get(url: str) -> float:
    """Load a page; returns the seconds that it took."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - began


def watch(urls: list[str], stop: threading.Event) -> list[threading.Thread]:
    """Keep an event stream open for each address, and read what comes."""

    def read(url: str) -> None:
        with urllib.request.urlopen(url, timeout=60) as stream:
            while not stop.is_set() and stream.readline():
                pass

    threads = [threading.Thread(target=read, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    return threads


def cost(process: psutil.Process, seconds: float) -> float:
    """Share of a core that the server uses."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def training(home: Path, run: str, stop: threading.Event) -> None:
    """Write four times a second what a training writes: a line of its log, its progress, a line of its history."""
    folder = home / "runs" / run
    model = folder / "artifacts" / "train" / ".model.1234.partial"
    model.mkdir(parents=True, exist_ok=True)
    step = 0
    while not stop.wait(0.25):
        step += 1
        with (folder / "logs" / "train.log").open("a") as log, (model / "history.jsonl").open("a") as history:
            log.write(f"  step {step}/100000  loss 0.4321  3,210 tokens/s  2:03 left\n")
            history.write(
                json.dumps({"step": step, "loss": 0.4321, "learning_rate": 1e-3, "gradient_norm": 1.0}) + "\n"
            )
        (folder / "logs" / "progress").write_text(f"step {step}/100000")


def delay(home: Path, run: str, address: str) -> float:
    """Seconds from a line in a step's log to the event that carries it."""
    path = home / "runs" / run / "logs" / "train.log"
    url = f"{address}/live/{run}/log?step=train&from={path.stat().st_size}"
    waits = []
    with urllib.request.urlopen(url, timeout=30) as stream:
        for number in range(5):
            time.sleep(0.3)
            began = time.perf_counter()
            with path.open("a") as file:
                file.write(f"line {number}\n")
            while f"line {number}" not in stream.readline().decode():
                pass
            waits.append(time.perf_counter() - began)
    return max(waits)


def drawing() -> float:
    """Seconds to lay out and draw a graph of NODES nodes, nothing collapsed."""
    from xlnet_pipeline.lineage.drawing import Box, draw

    boxes = [Box(f"n{number}", ("model", f"node {number}"), "model") for number in range(NODES)]
    edges = [(f"n{(number - 1) // 4}", f"n{number}") for number in range(1, NODES)]
    began = time.perf_counter()
    draw(boxes, edges, "a graph")
    return time.perf_counter() - began


def main(tabs: int) -> None:
    """Print one line for each figure, with its limit."""
    home = Path(tempfile.mkdtemp(prefix="xlnet-ui-"))
    try:
        run = fill(home)
        with served(home) as (process, address, start):
            first = get(f"{address}/runs")
            processor = sum(process.cpu_times()[:2])
            again = statistics.median(get(f"{address}/runs?search=file-9") for _ in range(9))
            print(f"start to first page      {start:6.2f} s     (limit 2)")
            print(f"1,000 runs, first time   {first:6.3f} s     while their records are read")
            print(f"... processor time       {processor:6.2f} s     from the start on")
            print(f"1,000 runs, searched     {again:6.3f} s     (limit 0.3)")
            print(f"a line of a log, behind  {delay(home, run, address):6.2f} s     (limit 1)")
            idle = cost(process, 5)
            stop = threading.Event()
            watch([f"{address}/live/{run}/steps"], stop)
            time.sleep(1)
            print(f"one open page            {100 * (cost(process, 10) - idle):6.1f} %     of a core (limit 2)")
            watch([f"{address}/live/{run}/{('steps', 'log', 'metrics')[at % 3]}" for at in range(tabs)], stop)
            threading.Thread(target=training, args=(home, run, stop), daemon=True).start()
            time.sleep(2)
            share = 100 * cost(process, 20) / len(os.sched_getaffinity(0))
            print(
                f"{tabs} open pages            {share:6.1f} %     of all cores, which a training could lose (limit 1)"
            )
            print(f"memory                   {process.memory_info().rss / 1e6:6.0f} MB    (limit 120)")
            stop.set()
        with served(home) as (process, address, start):
            again = get(f"{address}/runs")
            print(f"started once more        {start:6.2f} s     to the first page")
            print(f"1,000 runs, first time   {again:6.3f} s     from the index (limit 0.3)")
        print(f"graph of {NODES:,} nodes     {drawing():6.2f} s     (limit 2)")
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tabs", type=int, default=50)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(parser.parse_args().tabs)

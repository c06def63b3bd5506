"""Prediction speed on a CPU beside transformers' pipeline and ONNX Runtime: XLNet-base, SST-2's dev sentences.

    python tests/benchmarks/serving_speed.py [--kinds ours pipeline onnx] [--parts offline server] [--texts 256]
        [--rounds 3] [--seconds 200]
    python tests/benchmarks/serving_speed.py --table offline.json latency.json    # the parts in one table

The weights are random, and the same for all. Every round measures each contender in turn: all texts at once without a
server; all texts through the server in requests of 32 from two clients; single texts from 1, 8 and 64 clients. It
prints medians over the rounds by the clock, and by the contender's processor time, which other work on the machine
disturbs less. The machine's own rates, of matrix products and of reading memory, are measured in the same rounds.
`serving_contenders.py` says who answers. Needs the extra `benchmarks` for ONNX Runtime.
"""

import argparse
import csv
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_rows import SHARED
from serving_contenders import KINDS

from xlnet.data.tokenizer import load_tokenizer
from xlnet.model.config import XLNetConfig
from xlnet.model.weights import load_classifier, save_model
from xlnet.model.xlnet import XLNetClassifier

BASE = XLNetConfig(32_000, 12, 768, 12, 64, 3072, classes=("0", "1"))
CLIENTS = {1: 24, 8: 64, 64: 256}  # and how many texts they send, each in a request of its own
BYTES = {"bfloat16": 2, "int8": 1}  # of a weight; 4 otherwise
PARTS = ("offline", "server", "latency", "cold")
TICKS = os.sysconf("SC_CLK_TCK")


class Contender:
    """A contender's process, driven from this one."""

    def __init__(self, kind: str, directory: Path, threads: int) -> None:
        program = Path(__file__).with_name("serving_contenders.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), kind, str(directory), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        said = self._read()
        self.port, self.pid = said["port"], said["pid"]

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[2]} ended with status {self.process.wait()}")
        return json.loads(line)

    def offline(self, texts: list[str]) -> Any:
        """Answer texts without HTTP: seconds by the clock and of the processor, and the first answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(texts) + "\n")
        self.process.stdin.flush()
        return self._read()

    def worked(self) -> float:
        """Processor seconds of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak(self) -> float:
        """MiB: the most memory that the process has taken."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def online(self, requests: list[list[str]], clients: int) -> tuple[float, float, list[float]]:
        """Send requests from many clients: seconds by the clock and of the processor, and each request's seconds."""
        left, latencies = list(requests)[::-1], []

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            while True:
                try:
                    body = json.dumps({"instances": left.pop()})
                except IndexError:
                    return
                begun = time.perf_counter()
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                if answer.status != 200:
                    raise RuntimeError(answer.read())
                answer.read()
                latencies.append(time.perf_counter() - begun)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        begun, worked = time.perf_counter(), self.worked()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun, self.worked() - worked, latencies

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def make_model(directory: Path, onnx: bool) -> None:
    """Write the model that all contenders load."""
    torch.manual_seed(0)
    save_model(XLNetClassifier(BASE).state_dict(), BASE, directory)
    load_tokenizer("xlnet-base-cased").save(directory)
    if onnx:
        from portable_model import export

        export(load_classifier(directory), directory / "model.onnx")


def sentences(count: int) -> list[str]:
    """SST-2's dev sentences, evenly spread over the file."""
    with (SHARED / "sst2" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    texts = [row[0] if not row[0].strip().isdigit() else row[1] for row in rows]
    return [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]


def needed(lengths: list[int]) -> float:
    """Operations that any exact XLNet needs for these texts: of the last layer, only one query for each text."""
    d, layers = BASE.d_model, BASE.n_layer
    whole = sum((layers - 1) * (24 * d**2 * n + 6 * n * n * d) for n in lengths)
    return whole + sum(4 * d**2 * n + 20 * d**2 + 6 * n * d for n in lengths)


def best_rate(work: Callable[[], Any], amount: float, clock: Callable[[], float]) -> float:
    """Amount per second, the best of a few tries."""

    def seconds() -> float:
        begun = clock()
        work()
        return clock() - begun

    work()
    return amount / min(seconds() for _ in range(4))


def machine_rates() -> dict[str, list[float]]:
    """Operations per second of large products in each type, and bytes read per second, by clock and by processor."""
    size, rates = 1536, {}
    a = torch.randn(size, size)
    b = a.bfloat16()
    reading = torch.ones(2**26)
    works: dict[str, tuple[Callable[[], Any], float]] = {
        "float32": (lambda: a @ a, 2 * size**3),
        "bfloat16": (lambda: b @ b, 2 * size**3),
        "memory": (reading.sum, 4.0 * len(reading)),
    }
    for name, (work, amount) in works.items():
        rates[name] = [best_rate(work, amount, clock) for clock in (time.perf_counter, time.process_time)]
    return rates


def cold_start(kind: str, directory: Path) -> tuple[float, float]:
    """Seconds from a command to its first answer, by the clock and of the processor."""
    if kind == "pipeline":
        code = "from transformers import pipeline; print(pipeline('text-classification', model=sys.argv[1])('a film'))"
        command = [sys.executable, "-c", "import sys\n" + code, str(directory)]
    else:
        command = [sys.executable, "-m", "xlnet", "predict", str(directory), "a film"]
        command += [] if kind == "ours" else ["--precision", kind]
    begun, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - begun, worked


def one_round(running: dict[str, Contender], texts: list[str], directory: Path, parts: list[str]) -> dict[str, Any]:
    """Measure every contender once, in turn."""
    found: dict[str, Any] = {"rates": machine_rates()} | {kind: {} for kind in running}
    batches = [texts[start : start + 32] for start in range(0, len(texts), 32)]
    if "offline" in parts:
        for kind, one in running.items():
            found[kind]["offline"] = one.offline(texts)["seconds"]
    if "server" in parts:
        for kind, one in running.items():
            found[kind]["server"] = one.online(batches, 2)[:2]
    for clients, requests in CLIENTS.items() if "latency" in parts else ():
        for kind, one in running.items():
            _, worked, latencies = one.online([[text] for text in texts[:requests]], clients)
            found[kind][f"clients {clients}"] = [statistics.median(latencies), float(np.percentile(latencies, 99))]
            found[kind][f"processor {clients}"] = worked / len(latencies)
    for kind in set(running) - {"onnx"} if "cold" in parts else ():
        found[kind]["cold"] = cold_start(kind, directory)
    return found


def summary(rounds: list[dict[str, Any]], texts: int, work: float) -> dict[str, Any]:
    """Medians over the rounds, and ratios to the pipeline within each round."""
    middle = statistics.median
    result: dict[str, Any] = {
        "rates": {
            name: [middle(one["rates"][name][clock] for one in rounds) for clock in (0, 1)]
            for name in rounds[0]["rates"]
        }
    }
    for kind in rounds[0]:
        if kind == "rates":
            continue
        own: dict[str, Any] = {}
        for place in [place for place in ("offline", "server") if place in rounds[0][kind]]:
            own[f"{place} texts/s"] = [middle(texts / one[kind][place][clock] for one in rounds) for clock in (0, 1)]
            if "pipeline" in rounds[0]:
                own[f"{place} times pipeline"] = [
                    middle(one["pipeline"][place][clock] / one[kind][place][clock] for one in rounds)
                    for clock in (0, 1)
                ]
            rate = [work / texts * speed for speed in own[f"{place} texts/s"]]
            pairs = zip(rate, result["rates"]["float32"], strict=True)
            own[f"{place} share of float32 rate"] = [mine / whole for mine, whole in pairs]
        for clients in [clients for clients in CLIENTS if f"clients {clients}" in rounds[0][kind]]:
            figures = [[1000 * one[kind][f"clients {clients}"][i] for one in rounds] for i in (0, 1)]
            own[f"{clients} clients: median, 99 % ms"] = [middle(one) for one in figures]
            worked = [one[kind][f"processor {clients}"] for one in rounds]
            own[f"{clients} clients: processor ms a text"] = 1000 * middle(worked)
        if "clients 1" in rounds[0][kind]:  # a short text reads all weights of the layers once
            weights = 12 * BASE.n_layer * BASE.d_model**2 * BYTES.get(kind, 4)
            own["single text: share of memory rate"] = middle(
                weights / one[kind]["clients 1"][0] / one["rates"]["memory"][0] for one in rounds
            )
        if "cold" in rounds[0][kind]:
            own["cold start s"] = [middle(one[kind]["cold"][clock] for one in rounds) for clock in (0, 1)]
        result[kind] = own
    return result


def table(files: list[Path]) -> str:
    """Return a Markdown table of measurements that were made in parts."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for kind, own in json.loads(file.read_text(encoding="utf-8")).items():
            if kind in KINDS:
                found.setdefault(kind, {}).update(own)
    places = list(dict.fromkeys(place for own in found.values() for place in own if "processor" not in place))
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for place in places:
        lines.append(f"| {place} | " + " | ".join(_cell(place, own.get(place)) for own in found.values()) + " |")
    return "\n".join(lines)


def _cell(place: str, value: Any) -> str:
    if value is None:
        return ""
    if "clients" in place:  # the median and the 99th percentile
        return f"{value[0]:.3g}, {value[1]:.3g}"
    return f"{value[0] if isinstance(value, list) else value:.3g}"  # by the clock


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["ours", "pipeline", "onnx"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no round after this time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where the model is kept; default: a temporary one")
    parser.add_argument("--table", nargs="+", type=Path, help="print a table of what earlier calls printed, and end")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.folder or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "config.json").exists() or ("onnx" in options.kinds) > (directory / "model.onnx").exists():
            make_model(directory, "onnx" in options.kinds)
        texts = sentences(options.texts)
        lengths = [len(ids) for ids in load_tokenizer(directory).encode(texts, None, 512).input_ids]
        running = {kind: Contender(kind, directory, options.threads) for kind in options.kinds}
        begun, rounds = time.monotonic(), []
        answers = {kind: one.offline(texts[:32])["first"] for kind, one in running.items()}  # warms up, too
        while len(rounds) < options.rounds and (not rounds or time.monotonic() - begun < options.seconds):
            rounds.append(one_round(running, texts, directory, options.parts))
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
        result = summary(rounds, len(texts), needed(lengths))
        for kind, one in running.items():
            result[kind]["peak MiB"] = one.peak()
            one.close()
    counts = {"rounds": len(rounds), "texts": len(texts), "threads": options.threads}
    facts = counts | {"mean tokens": statistics.mean(lengths)}
    print(json.dumps(facts | {"load": os.getloadavg()[0], "answers": answers} | result, indent=1))


if __name__ == "__main__":
    main()

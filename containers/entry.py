"""A container's first process: forwards signals to the program below a step's shells, and exits with its status.

    python -I -S entry.py COMMAND...

A shell that waits for a program ends at once on SIGTERM. The container would end with it, and the trainer would be
killed before it has written its checkpoint. So this process sends the signal to the first process below the shells that
is not a shell. The shells wait for that process, and pass its exit status on. Orphaned processes are reaped here.
"""

import os
import signal
import sys
from collections import defaultdict

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
SHELLS = {"sh", "dash", "bash"}


def family() -> tuple[dict[int, str], dict[int, list[int]]]:
    """Return the names of all running processes, and the children of each."""
    names: dict[int, str] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                before, _, after = file.read().rpartition(")")
        except OSError:  # it has just ended
            continue
        state, parent = after.split()[:2]
        if state != "Z":
            names[int(entry)] = before.partition("(")[2]
            children[int(parent)].append(int(entry))
    return names, children


def below_shells(process: int) -> list[int]:
    """Return the processes that a signal to ``process`` is meant for."""
    names, children = family()
    found, waiting = [], [process]
    while waiting:
        one = waiting.pop()
        if names.get(one) in SHELLS and children[one]:
            waiting += children[one]
        else:
            found.append(one)
    return found


def main(command: list[str]) -> int:
    """Run the command; return its exit status, or 128 and the signal that ended it."""
    child = 0
    early: list[int] = []

    def forward(number: int, frame: object) -> None:
        if not child:
            early.append(number)
        for process in below_shells(child) if child else []:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    for number in FORWARDED:
        signal.signal(number, forward)
    try:
        child = os.posix_spawnp(command[0], command, os.environ, setsigdef=FORWARDED)
    except OSError as error:
        print(f"error: '{command[0]}' cannot be run: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    for number in early:
        forward(number, None)
    while True:
        process, status = os.wait()
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

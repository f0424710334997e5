"""System calls for each request, counted under a load of its own: what counts may slow down what is counted.

Ours counts what its reactor asks of the kernel, and tells on the admin port. The others are counted by perf where the
kernel lets it, which costs them next to nothing, or by strace, which slows them so far that they find more work at each
wait: their figure is then too low rather than too high. Opening the load's connections is counted with the requests.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.request
from functools import cache
from pathlib import Path
from typing import Iterable, Iterator

from measure import Load, descendants, send
from peers import Peer, find

EVENT = "raw_syscalls:sys_enter"
ATTACH_S = 10.0
REPORT_S = 5.0
Targets = Iterable[tuple[int, Load]]


def for_each_request(peer: Peer, pid: int, targets: Targets, core: int, work: Path) -> Iterator[float | None]:
    """System calls over requests answered, of each load in turn; None where nothing can count them."""
    if peer.admin_port:
        yield from by_ours(peer.admin_port, targets, core, work)
        return
    by = by_perf if can_perf() else by_strace if find("strace") else None
    for port, load in targets:
        yield by(port, pid, load, core, work) if by else None


def by_ours(admin_port: int, targets: Targets, core: int, work: Path) -> Iterator[float]:
    """From the workers' own counters: what one load begins with is what the last one ended with."""
    before = told(admin_port)
    for port, load in targets:
        requests = len(send(port, load, core, work / "h2load.log"))
        after = told(admin_port)
        yield (after - before) / max(requests, 1)
        before = after


def told(admin_port: int) -> int:
    """System calls of all workers since their start, by a report that is made from now on: they report by the second,
    and no report is like the last, for making it takes a turn."""
    deadline, old = time.monotonic() + REPORT_S, workers(admin_port)
    while (new := workers(admin_port)) == old:
        if time.monotonic() > deadline:
            raise RuntimeError(f"its counters on admin port {admin_port} stood still for {REPORT_S:.0f} s")
        time.sleep(0.02)
    return sum(int(worker["syscalls"]) for worker in new)


def workers(admin_port: int) -> list[dict[str, int]]:
    """The counters by worker, as last reported."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/io?format=json", timeout=5.0) as answer:
        return list(json.load(answer)["workers"])


@cache
def can_perf() -> bool:
    """Whether perf is here and may count system calls."""
    if not find("perf"):
        return False
    done = subprocess.run(["perf", "stat", "-x,", "-e", EVENT, "true"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and re.search(r"^[1-9]\d*,", done.stderr, re.MULTILINE) is not None


def by_perf(port: int, pid: int, load: Load, core: int, work: Path) -> float | None:
    """perf counts the process while the load runs under it."""
    counted = work / "perf.csv"
    family = ",".join(str(member) for member in descendants(pid))
    under = ["perf", "stat", "-x,", "-o", str(counted), "-e", EVENT, "-p", family, "--"]
    requests = len(send(port, load, core, work / "h2load.log", under))
    found = re.search(r"^(\d+),", counted.read_text(), re.MULTILINE)
    return int(found.group(1)) / max(requests, 1) if found else None


def by_strace(port: int, pid: int, load: Load, core: int, work: Path) -> float | None:
    """strace is attached while the load runs, and sums up when it is told to let go."""
    counted = work / "strace.txt"
    family = descendants(pid)
    command = ["strace", "-f", "-c", "-o", str(counted), *(f"--attach={member}" for member in family)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr
        if not all("attached" in tracer.stderr.readline() for _ in family):
            return None
        requests = len(send(port, load, core, work / "h2load.log"))
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=ATTACH_S)
    found = re.search(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s.*\btotal$", counted.read_text(), re.MULTILINE)
    return int(found.group(1)) / max(requests, 1) if found else None

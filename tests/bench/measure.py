"""One figure at a time: processes on their cores, their CPU time and memory, and a load with its latencies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, Sequence

from peers import FRAMED_BACKEND, MESSAGE, Peer, find

START_S = 15.0
STOP_S = 5.0
WARM_S = 0.3
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Post:
    """What a POST comes with, where a bare GET would not do."""

    body: bytes
    headers: tuple[str, ...]


ORDER = Post(
    b"o" * 1500,
    (
        "accept: application/json",
        "authorization: Bearer 4d8f5e0c2b7a4961a3f0c6de7b81925f",
        "content-type: application/json",
        "cookie: session=7f3a9c0de1b24586; theme=dark",
        "idempotency-key: 8c1f0b8e-3d52-4c7a-9e61-b20f4a7d9c35",
        "user-agent: shop/1.0",
    ),
)
CALL = Post(
    MESSAGE, ("content-type: application/grpc", "te: trailers", "grpc-timeout: 15S", "user-agent: grpc-go/1.83.1")
)


@dataclass(frozen=True)
class Load:
    """What is sent: `rate` requests a second over all connections, or as many as go when it is None."""

    path: str
    connections: int
    rate: int | None
    span_s: float
    streams: int = 0  # at once on each connection, over HTTP/2; 0: HTTP/1.1
    post: Post | None = None  # a bare GET without
    status: str = "200"  # what every answer is to have


@dataclass(frozen=True)
class Sample:
    """What one load cost and took."""

    requests: int
    per_second: float
    cpu_us: float
    p50_us: int
    p99_us: int
    p999_us: int
    rss_mib: float
    bad: int
    foreign: float  # share of the proxy's core that others took meanwhile


@contextmanager
def running(peer: Peer, core: int, work: Path) -> Iterator[int]:
    """The peer on its core, answering; stopped by its process id at the end."""
    log = work / f"{peer.port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            peer.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    try:
        await_answer(peer, process, log)
        yield process.pid
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end, then ends it with what it started."""
    family = descendants(process.pid)
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


def await_answer(peer: Peer, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when a whole answer came through each port of the peer."""
    deadline = time.monotonic() + START_S
    waited = [port for port in (peer.port, peer.tcp_port, peer.framed_port) if port]
    while waited and time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", waited[0]), 1.0) as stream:
                if peer.kind != FRAMED_BACKEND:
                    ask(stream)
                waited.pop(0)
        except OSError:
            time.sleep(0.02)
    if waited:
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{peer.name} does not answer on port {waited[0]} after {START_S:.0f} s: {said}")


def ask(stream: socket.socket) -> None:
    """One request for `/`; the connection stays open."""
    stream.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    answer = b""
    while True:
        head, mark, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if mark and not (head.startswith(b"HTTP/1.1 200") and length):
            raise ConnectionError(head.decode(errors="replace"))
        if mark and length and len(body) >= int(length.group(1)):
            return
        more = stream.recv(4096)
        if not more:
            raise ConnectionError("closed before its answer was whole")
        answer += more


def descendants(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += descendants(int(child))
    except OSError:
        pass
    return found


def cpu_ns(pid: int) -> int:
    """Time on a CPU of all threads of the process and its descendants."""
    total = 0
    for member in descendants(pid):
        for schedstat in Path(f"/proc/{member}/task").glob("*/schedstat"):
            total += int(schedstat.read_text().split()[0])
    return total


def rss_kib(pid: int) -> int:
    """Resident memory of the process and its descendants."""
    total = 0
    for member in descendants(pid):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{member}/status").read_text())
        total += int(found.group(1)) if found else 0
    return total


def core_busy_s(core: int) -> float:
    """Time that the core did not idle since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in line.split()[1:9])
            return (user + nice + system + irq + softirq + steal) / TICKS_PER_S
    return 0.0


def send(port: int, load: Load, core: int, log: Path, under: Sequence[str] = ()) -> list[tuple[bool, int]]:
    """Runs the load, `under` a command that watches; of every request, whether it was answered as it is to be and how
    long it took."""
    log.unlink(missing_ok=True)
    version = [f"-m{load.streams}"] if load.streams else ["--h1"]
    command = [*under, find("h2load") or "h2load", *version, "-t1", f"-c{load.connections}"]
    command += [f"-D{round(load.span_s * 1000)}ms"]
    command += [f"--rps={load.rate / load.connections}"] if load.rate else []
    if load.post:
        body = log.with_name("body")
        body.write_bytes(load.post.body)
        command += ["-d", str(body), *(word for header in load.post.headers for word in ("-H", header))]
    command += [f"--log-file={log}", f"http://127.0.0.1:{port}{load.path}"]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=load.span_s + 30,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        check=False,
    )
    if done.returncode != 0 or not log.exists():
        raise RuntimeError(f"h2load ended with {done.returncode}: {done.stdout.decode(errors='replace')[-1000:]}")
    lines = (line.split("\t") for line in log.read_text().splitlines())
    # h2load reads 0 where a status line has no reason phrase, as HAProxy's of an answer that came in HTTP/2; -1 is a failure.
    return [(fields[1] in (load.status, "0"), int(fields[2])) for fields in lines if len(fields) == 3]


def quantile(ordered: list[int], share: float) -> int:
    """The value that `share` of all do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def sample(port: int, pid: int, load: Load, cores: tuple[int, int], work: Path) -> Sample:
    """The load once to warm up, shortly, and once to be measured."""
    log = work / "h2load.log"
    send(port, replace(load, span_s=min(WARM_S, load.span_s / 2)), cores[1], log)
    busy_s, spent_ns, begin = core_busy_s(cores[0]), cpu_ns(pid), time.monotonic()
    answers = send(port, load, cores[1], log)
    spent_ns, busy_s, wall_s = cpu_ns(pid) - spent_ns, core_busy_s(cores[0]) - busy_s, time.monotonic() - begin
    if not answers:
        raise RuntimeError(f"no request for {load.path} was answered")
    took = sorted(us for _, us in answers)
    return Sample(
        requests=len(took),
        per_second=len(took) / load.span_s,
        cpu_us=spent_ns / 1000 / len(took),
        p50_us=quantile(took, 0.5),
        p99_us=quantile(took, 0.99),
        p999_us=quantile(took, 0.999),
        rss_mib=rss_kib(pid) / 1024,
        bad=sum(1 for good, _ in answers if not good),
        foreign=max(0.0, busy_s - spent_ns / 1e9) / wall_s,
    )


def idle_connections(peer: Peer, pid: int, count: int) -> tuple[float, float]:
    """MiB of the process with few connections, and KiB for each further one that was served once and is kept."""
    held: list[socket.socket] = []
    try:
        for opened in range(count + 10):
            stream = socket.create_connection(("127.0.0.1", peer.port), 5.0)
            held.append(stream)
            ask(stream)
            if opened == 9:
                before_kib = rss_kib(pid)
        return before_kib / 1024, (rss_kib(pid) - before_kib) / count
    finally:
        for stream in held:
            stream.close()

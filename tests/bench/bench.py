#!/usr/bin/env python3
"""Our proxy beside HAProxy, nginx, Envoy and bare byte relays, on one core each.

The proxy under test has one worker on the first core; the load (h2load) and the application behind it (nginx) share
the second. All peers are measured in turn, and that is repeated, so that a slow minute of the machine meets all of
them; figures are medians. CPU is what the scheduler says that the proxy's threads ran, over requests answered.

Ours has every policy on (retries, ejection, circuit limits, a rate limit that does not bind, counts by route); the
others are bare. The relays only move bytes: on plain epoll, with splice(2), on our own runtime
(proxy/reactor/examples/relay.rs), and on tokio-uring. "÷relay" is against the cheapest that copies, "÷splice" against
the one that does not.

Requests are bare GETs. Three scenes are measured when they are asked for: orders, POSTs with a body and an ordinary
client's headers; grpc, unary calls whose answers end with a grpc-status; and refused, GETs that each get a 429: from ours
by a rate limit without a token left, from the others by a rule that counts nothing. In the scene tcp every proxy passes the
same requests on unread, as a relay always does. In the scenes h2, h1-h2, h2-h1 and grpc clients, application (nghttpd) or
both speak HTTP/2, clients with 10 streams a connection.

"calls/req" are system calls, counted apart from the timed runs (calls.py). All of it runs in a network of its own,
where no sender is paced (network.py); the first line of the table names the congestion control in use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import calls
import measure
import network
import peers
import report

SCENES = ("small", "64k", "1m", "tcp", "h2", "h1-h2", "h2-h1", "idle")
MORE_SCENES = ("orders", "refused", "grpc")  # when asked for
FILES = {"64k": 64 << 10, "1m": 1 << 20}
LIMIT_S = 700.0
QUICK_LIMIT_S = 170.0
STREAMS = 10
SPAN_S, QUICK_SPAN_S = 1.6, 0.5
TITLES = {
    "small": "/ at 4,000 req/s",
    "saturated": "/ saturated",
    "64k": "64 KiB at 1,000 req/s",
    "1m": "1 MiB at 200 req/s",
    "tcp": "tcp / at 4,000 req/s",
    "tcp-saturated": "tcp / saturated",
    "tcp-1m": "tcp 1 MiB at 200 req/s",
    "h2": "h2 to h2 / at 4,000 req/s",
    "h2-saturated": "h2 to h2 / saturated",
    "h1-h2": "h1 to h2 / at 4,000 req/s",
    "h1-h2-saturated": "h1 to h2 / saturated",
    "h2-h1": "h2 to h1 / at 4,000 req/s",
    "h2-h1-saturated": "h2 to h1 / saturated",
    "orders": "orders at 4,000 req/s",
    "orders-saturated": "orders saturated",
    "h2-orders": "h2 to h2 orders at 4,000 req/s",
    "h2-orders-saturated": "h2 to h2 orders saturated",
    "grpc": "gRPC at 4,000 calls/s",
    "grpc-saturated": "gRPC saturated",
    "refused": "429 at 4,000 req/s",
    "refused-saturated": "429 saturated",
    "h2-refused": "429 over h2 saturated",
    "idle": "idle, served once, one by one",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter loads: three minutes at most instead of twelve")
    parser.add_argument("--repeat", type=int, metavar="N", help="runs to take the median of [5; 3 with --quick]")
    parser.add_argument("--scene", action="append", choices=SCENES + MORE_SCENES, help="only this scene; may be repeated")
    parser.add_argument("--only", metavar="NAMES", help="only peers whose name begins so, comma-separated")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    parser.add_argument("--install", action="store_true", help="first install Debian's packages that are missing")
    parser.add_argument("--connections", type=int, default=32, help="client connections [32]")
    parser.add_argument("--idle", type=int, default=1000, metavar="N", help="connections of the scene idle [1000]")
    parser.add_argument("--machine-network", action="store_true", help="stay in the machine's network, paced or not")
    parser.add_argument("--out", type=Path, default=peers.TARGET / "bench", help="folder for bench.json and bench.svg")
    parser.add_argument("--proxy", type=Path, default=peers.RELEASED / "outrigger-proxy", help="our binary")
    parser.add_argument("--ring-relay", type=Path, default=peers.TARGET / "release/examples/relay", help="our relay")
    parser.add_argument("--floor", type=Path, default=peers.TARGET / "bench/build/release", help="folder of the others")
    parsed = parser.parse_args()
    if parsed.repeat is not None and parsed.repeat < 1:
        parser.error("--repeat: at least 1")
    if not 1 <= parsed.connections <= 1000 or not 1 <= parsed.idle <= 5000:
        parser.error("--connections takes 1 to 1000, --idle 1 to 5000")
    if not parsed.proxy.exists():
        parser.error(f"{parsed.proxy} is not built: run `make release`, or give --proxy")
    return parsed


def wanted(options: argparse.Namespace) -> tuple[str, ...]:
    """What the names of the peers to measure begin with."""
    return tuple((options.only or "").split(","))


def machine() -> dict[str, str]:
    """What the figures depend on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].split(":", 1)[1].strip() if models else platform.machine()
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "congestion_control": network.congestion_control(),
        "load": Path("/proc/loadavg").read_text().split()[0],
    }


def two_cores() -> tuple[int, int]:
    """The cores of the proxy, and of the load and the application."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        sys.exit("two cores are needed, one for the proxy and one for the load")
    return allowed[0], allowed[1]


def loads(options: argparse.Namespace, scene: str) -> dict[str, measure.Load]:
    """The loads of a scene, by the row they fill."""
    span_s = QUICK_SPAN_S if options.quick else SPAN_S
    few = min(options.connections, 8)
    steady = measure.Load("/", options.connections, 4000, span_s)
    saturated = measure.Load("/", options.connections, None, span_s)
    large = measure.Load("/static/1m", few, 200, span_s)
    framed, framed_saturated = replace(steady, streams=STREAMS), replace(saturated, streams=STREAMS)
    orders = {"orders": steady, "orders-saturated": saturated, "h2-orders": framed, "h2-orders-saturated": framed_saturated}
    refused = {"refused": steady, "refused-saturated": saturated, "h2-refused": framed_saturated}
    grpc = {"grpc": framed, "grpc-saturated": framed_saturated}
    return {
        "small": {"small": steady, "saturated": saturated},
        "64k": {"64k": measure.Load("/static/64k", few, 1000, span_s)},
        "1m": {"1m": large},
        "tcp": {"tcp": steady, "tcp-saturated": saturated, "tcp-1m": large},
        "h2": {"h2": framed, "h2-saturated": framed_saturated},
        "h1-h2": {"h1-h2": steady, "h1-h2-saturated": saturated},
        "h2-h1": {"h2-h1": framed, "h2-h1-saturated": framed_saturated},
        "orders": {title: replace(load, post=measure.ORDER) for title, load in orders.items()},
        "refused": {title: replace(load, path="/refused", status="429") for title, load in refused.items()},
        "grpc": {title: replace(load, path=peers.CALL_PATH, post=measure.CALL) for title, load in grpc.items()},
    }[scene]


def write_files(work: Path) -> None:
    """The bodies that the application serves."""
    work.chmod(0o755)
    (work / "static").mkdir(mode=0o755)
    for name, size in FILES.items():
        path = work / "static" / name
        path.write_bytes(os.urandom(size))
        path.chmod(0o644)


class Comparison:
    """One whole run: every peer in every scene, over and over, within its time."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.cores = two_cores()
        self.repeat: int = options.repeat or (3 if options.quick else 5)
        self.scenes: list[str] = options.scene or list(SCENES)
        self.end = time.monotonic() + (QUICK_LIMIT_S if options.quick else LIMIT_S)
        self.backends = peers.backends(work)
        ours = peers.ours(options.proxy, self.backends, work)
        prefixes = wanted(options)
        others, versions = peers.others(self.backends, work, prefixes)
        floor = peers.relays(options.floor, options.ring_relay, self.backends)
        self.peers = [peer for peer in [*ours, *others, *floor] if peer.name.startswith(prefixes)]
        versions = {"outrigger": peers.version([str(options.proxy), "--version"]), **versions}
        versions["h2load"] = peers.version([peers.find("h2load") or "h2load", "--version"])
        command = shlex.join(["make", "bench", *([f"ARGS={shown()}"] if shown() else [])])
        self.report = report.Report(machine(), versions, TITLES, self.repeat, command)

    def run(self) -> report.Report:
        """Measures until all is done or the time is over."""
        with ExitStack() as stack:
            for backend in self.backends.all():
                stack.enter_context(measure.running(backend, self.cores[1], self.work))
            for turn in range(self.repeat):
                for peer in self.peers:
                    if time.monotonic() > self.end:
                        say(f"time is over in run {turn + 1} of {self.repeat}: medians are of fewer runs")
                        return self.report
                    self.measure(peer, turn)
        return self.report

    def measure(self, peer: peers.Peer, turn: int) -> None:
        """One peer once; a peer that fails is named and costs the others nothing."""
        say(f"run {turn + 1} of {self.repeat}: {peer.name}")
        try:
            if "idle" in self.scenes and turn == 0 and peer.kind != "relay":
                # In a process of its own: what these connections leave behind is not the load's.
                with measure.running(peer, self.cores[0], self.work) as pid:
                    rss_mib, idle_kib = measure.idle_connections(peer, pid, self.options.idle)
                self.report.row("idle", peer.name, peer.kind).add(rss_mib=rss_mib, idle_kib=idle_kib)
            with measure.running(peer, self.cores[0], self.work) as pid:
                self.measure_loads(peer, pid, turn)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            say(f"{peer.name}: {error}")

    def measure_loads(self, peer: peers.Peer, pid: int, turn: int) -> None:
        """Every load once, and in the first turn the system calls of each, after all that is timed."""
        targets = self.targets(peer)
        for (port, load), titles in targets.items():
            taken = measure.sample(port, pid, load, self.cores, self.work)
            for title in titles:
                self.report.row(title, peer.name, peer.kind).add(**vars(taken))
        if turn > 0:
            return
        counted = calls.for_each_request(peer, pid, targets, self.cores[1], self.work)
        for titles, figure in zip(targets.values(), counted):
            for title in titles if figure is not None else ():
                self.report.row(title, peer.name, peer.kind).add(calls=figure)

    def targets(self, peer: peers.Peer) -> dict[tuple[int, measure.Load], list[str]]:
        """Ports and loads with the rows they fill: for a relay, which has one port, opaque or not is the same load."""
        found: dict[tuple[int, measure.Load], list[str]] = {}
        for scene in (scene for scene in self.scenes if scene != "idle"):
            for title, load in loads(self.options, scene).items():
                if port := port_of(peer, title, bool(self.backends.framed)):
                    found.setdefault((port, load), []).append(title)
        return found


def port_of(peer: peers.Peer, title: str, is_framed: bool) -> int | None:
    """Where the requests of that row go; None when the peer has no such row, or nothing speaks HTTP/2 behind it."""
    if title in report.REFUSED and peer.kind == "relay":
        return None
    if title in report.OPAQUE:
        return peer.tcp_port
    if title in report.FRAMED:
        return peer.framed_port if is_framed else None
    return peer.port if title not in report.UNFRAMED or peer.framed_port else None


def shown() -> str:
    """The command line as `make bench` takes it."""
    return shlex.join(argument for argument in sys.argv[1:] if argument != "--install")


def say(line: str) -> None:
    """Progress, apart from the result."""
    print(line, file=sys.stderr, flush=True)


def raise_file_limit() -> None:
    """Idle connections need a descriptor each, here and in the proxies."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def write(result: report.Report, folder: Path) -> None:
    """The JSON and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report.as_json(result), indent=1) + "\n")
    (folder / "bench.svg").write_text(report.picture(result))
    say(f"written: {folder / 'bench.json'}, {folder / 'bench.svg'}")


def main() -> None:
    """Runs the comparison and writes what it found."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    raise_file_limit()
    if options.install:
        peers.install_missing()
    if not options.machine_network:
        if "envoy".startswith(wanted(options)):
            peers.find_envoy()  # fetched while there is a way to fetch it
        network.enter()
    work = Path(tempfile.mkdtemp(prefix="outrigger-bench-"))
    try:
        write_files(work)
        comparison = Comparison(options, work)
        if float(comparison.report.machine["load"]) > 0.5:
            say(f"this machine is busy (load {comparison.report.machine['load']}): neither figures nor ratios will hold")
        result = comparison.run()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write(result, options.out)
    print(json.dumps(report.as_json(result), indent=1) if options.json else report.table(result))


if __name__ == "__main__":
    main()

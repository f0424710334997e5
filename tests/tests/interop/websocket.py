"""Python's websockets on both ends: an echo server, or a client that talks to it.

usage: websocket.py serve | ask PORT
"""

import sys

from websockets.sync.client import connect
from websockets.sync.server import serve


def echo(connection) -> None:
    for message in connection:
        connection.send(message)


def main() -> None:
    if sys.argv[1] == "serve":
        with serve(echo, "127.0.0.1", 0, max_size=None) as server:
            print("port", server.socket.getsockname()[1], flush=True)
            server.serve_forever()
        return
    with connect(f"ws://127.0.0.1:{sys.argv[2]}/chat", max_size=None, open_timeout=20, proxy=None) as connection:
        for message in ["hello", "", "ünïcode", b"\x00\xff" * 10, "x" * 70_000, b"y" * 1_000_000]:
            connection.send(message)
            if connection.recv(timeout=20) != message:
                sys.exit(f"a message of {len(message)} came back changed")
        if not connection.ping().wait(20):
            sys.exit("no pong")
    print(f"closed with {connection.protocol.close_code}")


main()

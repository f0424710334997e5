"""Fifty streams at once with Python's h2: each sends a body of its own and must get it back.

usage: h2_client.py PORT
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events

STREAMS = 50


def body_of(number: int) -> bytes:
    """From 100 bytes to 200,000."""
    return bytes([number]) * (100 + number * 199_900 // (STREAMS - 1))


def main() -> None:
    wire = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    wire.sendall(connection.data_to_send())
    wanted, came, ended = {}, {}, set()
    for number in range(STREAMS):
        stream = connection.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", "peer.test"), (":path", f"/{number}")]
        connection.send_headers(stream, pseudo)
        wanted[stream], came[stream] = body_of(number), b""
    rest = dict(wanted)
    while len(ended) < STREAMS:
        for stream in list(rest):
            room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            piece, rest[stream] = rest[stream][:room], rest[stream][room:]
            if piece or not rest[stream]:
                connection.send_data(stream, piece, end_stream=not rest[stream])
            if not rest[stream]:
                del rest[stream]
        wire.sendall(connection.data_to_send())
        received = wire.recv(65_536)
        if not received:
            sys.exit("the connection ended")
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived) and dict(event.headers)[":status"] != "200":
                sys.exit(f"{event}")
            if isinstance(event, h2.events.DataReceived):
                came[event.stream_id] += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
            if isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                sys.exit(f"{event}")
        wire.sendall(connection.data_to_send())
    if came != wanted:
        sys.exit("a body came back changed")
    sizes = sorted(map(len, wanted.values()))
    print(f"{STREAMS} streams, {sizes[0]} bytes to {sizes[-1]}, all came back")


main()

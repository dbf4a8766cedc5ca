"""One HTTP/2 request written byte by byte, for what no gRPC client would send (RFC 9113)."""

from __future__ import annotations

import socket
from collections.abc import Iterable

__all__ = ["GRPC", "exchange"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4
GRPC = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    (":authority", "envoy"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
"""Headers of a ModelInfer."""


def exchange(port: int, headers: Iterable[tuple[str, str]], parts: Iterable[bytes], wait_s: float) -> bytes:
    """Send headers and a body, one DATA frame for each part; return all DATA that comes back.

    It ends with the stream, with the connection, or after ``wait_s`` seconds of silence.
    """
    fields = b"".join(_literal(name, value) for name, value in headers)
    sent = PREFACE + _frame(SETTINGS, 0, b"", stream=0) + _frame(HEADERS, END_HEADERS, fields)
    bodies = list(parts)
    for number, body in enumerate(bodies, 1):
        sent += _frame(DATA, END_STREAM if number == len(bodies) else 0, body)
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        connection.sendall(sent)
        return _answered(connection)


def _answered(connection: socket.socket) -> bytes:
    came = b""
    while True:
        try:
            head = _exactly(connection, 9)
            payload = _exactly(connection, int.from_bytes(head[:3], "big"))
        except OSError:
            return came
        kind, flags, ours = head[3], head[4], int.from_bytes(head[5:9], "big") == 1
        if kind == DATA and ours:
            came += payload
        if kind == SETTINGS and not flags & 1:
            connection.sendall(_frame(SETTINGS, 1, b"", stream=0))
        over = kind in {DATA, HEADERS} and flags & END_STREAM
        if kind == GOAWAY or (ours and (kind == RST_STREAM or over)):
            return came


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes; :class:`OSError` if the connection ends before."""
    read = b""
    while len(read) < size:
        some = connection.recv(size - len(read))
        if not some:
            raise OSError("the connection ended")
        read += some
    return read


def _frame(kind: int, flags: int, payload: bytes, *, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """Return a header that is not put into a table; name and value below 127 bytes."""
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode("latin-1") for text in (name, value))

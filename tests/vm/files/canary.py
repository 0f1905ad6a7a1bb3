"""Answers every TCP connection and every datagram at its ports, on all addresses, long before the network is there."""

import os
import selectors
import socket
import struct

PORTS = (7, 8443)
RESET = struct.pack("ii", 1, 0)  # closes with a reset, so that no connection outlives its answer


def listeners():
    for port in PORTS:
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                listener = socket.socket(family, kind)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((any_address, port))
                if kind == socket.SOCK_STREAM:
                    listener.listen(1024)
                listener.setblocking(False)
                yield listener


def answer(listener):
    """Much of what has come, in one go: a slow machine could not answer each by itself, and the others wait."""
    for _turn in range(32):
        if listener.type == socket.SOCK_DGRAM:
            data, sender = listener.recvfrom(2048)
            try:
                listener.sendto(data, sender)
            except OSError:
                continue  # the packet filter refuses the answer
        else:
            connection, _peer = listener.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()


def main():
    selector = selectors.DefaultSelector()
    for listener in listeners():
        selector.register(listener, selectors.EVENT_READ)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
    while True:
        for key, _events in selector.select():
            try:
                answer(key.fileobj)
            except OSError:
                continue  # no more for now


main()

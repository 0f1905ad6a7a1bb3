"""A service on a host that answers whoever reaches it, over TCP and UDP, from before the network is up: only a packet filter keeps it closed.

Run as a program on the host, the file is that service; `plant` and `pull` run on the controller.
"""

from __future__ import annotations

import os
import selectors
import socket

PORT = 7007
UNIT = "moat-lab-canary.service"
PLACE, UNIT_PLACE = "/etc/moat-lab/canary.py", f"/etc/systemd/system/{UNIT}"
# It says that it listens before any interface may come up; it waits for nothing, and the packet filter does not wait for it.
UNIT_TEXT = f"""[Unit]
Description=Answers whoever reaches it
DefaultDependencies=no
Before=network-pre.target
[Service]
Type=notify
ExecStart=/usr/bin/python3 {PLACE}
Restart=always
[Install]
WantedBy=sysinit.target
"""
ASK = """
import socket, sys
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as asker:
            asker.settimeout(2)
            asker.connect((address, int(sys.argv[1])))
            asker.send(b"moat")
            assert asker.recv(16) == b"moat"
"""


def serve() -> None:
    """Answer each connection and each datagram with what it brought."""
    chosen = selectors.DefaultSelector()
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listener = socket.socket(family, kind)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(("", PORT))
            listener.setblocking(False)
            if kind == socket.SOCK_STREAM:
                listener.listen(512)
            chosen.register(listener, selectors.EVENT_READ, kind == socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    while True:
        for key, _events in chosen.select():
            try:
                answer(chosen, key.fileobj, bool(key.data))
            except OSError:
                continue


def answer(chosen: selectors.BaseSelector, ready: object, listens: bool) -> None:
    assert isinstance(ready, socket.socket)
    if listens:
        connection, _peer = ready.accept()
        connection.setblocking(False)
        chosen.register(connection, selectors.EVENT_READ, False)
    elif ready.type == socket.SOCK_DGRAM:
        data, peer = ready.recvfrom(2048)
        ready.sendto(data, peer)
    else:
        try:
            data = ready.recv(2048)
        except OSError:
            data = b""
        if data:
            ready.send(data)
        else:
            chosen.unregister(ready)
            ready.close()


def plant(host: str) -> None:
    """Put it on a host and start it, now and at each boot."""
    from pathlib import Path

    from tests.lab.shell import LabError
    from tests.lab.site import on

    script = (
        f"cat > {PLACE}; printf %s '{UNIT_TEXT}' > {UNIT_PLACE}; systemctl daemon-reload; systemctl enable --now {UNIT}"
    )
    done = on(host, script, data=Path(__file__).read_bytes())
    if done.code:
        raise LabError(f"{host}: the canary does not start: {done.err}")


def pull(host: str) -> None:
    """Take it away without a trace."""
    from tests.lab.site import on

    on(host, f"systemctl disable --now {UNIT}; rm -f {PLACE} {UNIT_PLACE}; systemctl daemon-reload")


def answers(host: str) -> bool:
    """Whether it answers on the host itself, over TCP and UDP, IPv4 and IPv6: else its silence proves nothing."""
    from tests.lab.site import on

    return on(host, f"python3 - {PORT}", data=ASK.encode()).code == 0


if __name__ == "__main__":
    serve()

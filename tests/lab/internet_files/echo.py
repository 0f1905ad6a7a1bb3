"""Answer each connection and each datagram with what it brought: addresses, TCP ports and UDP ports are given."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import cast


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto(data, peer)


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main(addresses: str, tcp: str, udp: str) -> None:
    loop = asyncio.get_running_loop()
    for address in addresses.split(","):
        for port in tcp.split(","):
            await asyncio.start_server(stream, address, int(port))
        for port in udp.split(","):
            await loop.create_datagram_endpoint(Datagrams, (address, int(port)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

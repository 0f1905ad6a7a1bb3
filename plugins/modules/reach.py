#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: reach
short_description: Probe from a host what it can reach
version_added: 0.1.0
description:
  - Connects to each target once, all at the same time, and reports what it found. It changes nothing.
  - A target with a path is asked over TLS with the named certificate of the host, or with none.
author:
  - moat.inference contributors (@moat-inference)
options:
  cells:
    description: Targets, as M(moat.inference.compile) lists them for this host.
    type: list
    elements: dict
    required: true
    suboptions:
      id: {description: Name of the cell., type: str, required: true}
      destination: {description: Name of the target host; not used by the probe., type: str}
      address: {description: IPv4 or IPv6 address to connect to., type: str, required: true}
      family: {description: Address family; not used by the probe., type: int}
      protocol: {description: Transport protocol., type: str, choices: [tcp], default: tcp}
      port: {description: Port to connect to., type: int, required: true}
      identity: {description: Whether to show the host's own certificate., type: str, choices: [none, own], default: none}
      client: {description: Name of the client whose certificate is shown; not used by the probe., type: str}
      certificate: {description: Name of the host's own certificate under the directory of certificates., type: str}
      path: {description: Path to ask for over HTTPS; without it a completed connection is enough., type: str}
      expect: {description: What the plan expects; not used by the probe., type: str}
      rule: {description: Rule id of the plan; not used by the probe., type: str}
  control:
    description:
      - A port that must answer this host, or its refusals prove nothing. Without it, an admitted cell of the same address family is the control.
      - A host that may reach nothing connects to itself instead, which shows only that its own firewall is what refuses.
    type: dict
    suboptions:
      address: {description: Address to connect to., type: str, required: true}
      address6: {description: IPv6 address to connect to as well. Refusals over IPv6 need their own control., type: str}
      port: {description: Port to connect to., type: int, required: true}
  certificates:
    description: Directory that has a directory for each certificate.
    type: path
    default: /etc/moat/tls
  timeout:
    description: Seconds to wait for an answer. Of a time in which the probing host stands still, a tenth of them counts at most.
    type: float
    default: 2.0
attributes:
  check_mode:
    support: full
    description: The module reads only.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Probe
  moat.inference.reach:
    cells: "{{ moat_compiled.cells[inventory_hostname] }}"
    control: {address: 10.110.0.254, address6: "fd00:110::254", port: 22}
"""

RETURN = r"""
found:
  description:
    - What each cell's probe found, by id.
    - Admitted is V(open), or V(status 200) for a cell with a path. A packet was refused with V(refused), V(timeout) or V(unreachable). TLS was
      refused with V(tls) and a reason. A request was refused with its status.
    - V(no answer), V(error) and V(not probed) with a reason tell nothing of who is admitted.
  type: dict
  returned: always
  sample: {"app1 gpu1 100.120.0.11 8443": open, "app1 gpu1 100.120.0.11 8443 portal xray-7b": status 200}
control:
  description: Whether a positive control answered.
  type: bool
  returned: always
controls:
  description: By address family, what the host reached; V(itself) where it may reach nothing else, empty where nothing answered.
  type: dict
  returned: always
  sample: {"4": 10.110.0.254 port 22, "6": ""}
listening:
  description: Every TCP socket of the host that listens, as address and port.
  type: list
  elements: str
  returned: always
  sample: [0.0.0.0 22, "::1 8081"]
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, TypeVar

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import reach

Result = TypeVar("Result")
UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EADDRNOTAVAIL)
AT_ONCE = 128
SLICES = 10
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def family_of(address: str) -> int:
    return 6 if ":" in address else 4


def client_context(directory: str | None) -> ssl.SSLContext:
    """Return a TLS client that shows the certificate in directory; who answers is the connector's business, not the probe's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's CAs, which take 30 ms to read
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if directory is not None:
        context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
    return context


async def within(timeout: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Await work for timeout seconds, in slices: a host that stands still for a while costs one slice, and is no silence of the other side."""
    task = asyncio.ensure_future(work)
    for _slice in range(SLICES):
        done, _pending = await asyncio.wait({task}, timeout=timeout / SLICES)
        if done:
            return task.result()
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():  # it ended in the same moment
        return task.result()
    raise TimeoutError


async def connect(address: str, port: int, timeout: float) -> socket.socket:
    """Return a connected socket."""
    made = socket.socket(FAMILIES[family_of(address)], socket.SOCK_STREAM)
    made.setblocking(False)
    try:
        await within(timeout, asyncio.get_running_loop().sock_connect(made, (address, port)))
    except BaseException:
        made.close()
        raise
    return made


async def ask(connection: socket.socket, cell: dict[str, Any], context: ssl.SSLContext) -> str:
    """Send one request over TLS and return its status."""
    reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname="")
    try:
        request = f"GET {cell['path']} HTTP/1.1\r\nHost: {cell['address']}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        line = (await reader.readline()).decode("latin-1").split()
        return f"status {line[1]}" if len(line) > 1 else "tls closed without an answer"
    finally:
        writer.close()


async def probe_packet(address: str, port: int, timeout: float) -> tuple[str, socket.socket | None]:
    """Return what a connection finds, in a word, and the connection."""
    try:
        return "open", await connect(address, port, timeout)
    except TimeoutError:
        return "timeout", None
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused", None
    except OSError as error:
        return "unreachable" if error.errno in UNREACHABLE else f"error {error.strerror or error}", None


async def probe_request(
    connection: socket.socket, cell: dict[str, Any], context: ssl.SSLContext, timeout: float
) -> str:
    """Return what a request over that connection finds. In TLS 1.3 a refused certificate shows only after the handshake."""
    try:
        return await within(timeout, ask(connection, cell, context))
    except TimeoutError:
        return "no answer"
    except ssl.SSLError as error:
        return f"tls {error.reason or error}"
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        return "tls reset"
    except OSError as error:
        return f"error {error.strerror or error}"


def certificate_of(cell: dict[str, Any]) -> str | None:
    """Name of the certificate that the probe of a cell shows."""
    return cell["certificate"] or "" if cell["identity"] == "own" else None


def contexts(cells: list[dict[str, Any]], certificates: str) -> dict[str | None, ssl.SSLContext | str]:
    """Return the TLS client for each certificate, or why there is none, before the clock of any probe runs."""
    made: dict[str | None, ssl.SSLContext | str] = {}
    for name in {certificate_of(cell) for cell in cells if cell.get("path")}:
        try:
            made[name] = client_context(None if name is None else os.path.join(certificates, name))
        except OSError as error:  # ssl.SSLError is one: a key that does not fit is no refusal by the gateway
            made[name] = f"not probed: certificate {name}: {error.strerror or error}"
    return made


async def probe(cell: dict[str, Any], context: ssl.SSLContext | str | None, timeout: float) -> str:
    """Return what one target answers, in a word."""
    if isinstance(context, str):
        return context
    found, connection = await probe_packet(cell["address"], cell["port"], timeout)
    if connection is None:
        return found
    if context is None:
        connection.close()
        return found
    return await probe_request(connection, cell, context, timeout)


async def reaches_itself(address: str, timeout: float) -> bool:
    """Whether the host can connect to a listener of its own, at the address from which it would send to the given one."""
    family = FAMILIES[family_of(address)]
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sender, socket.socket(family, socket.SOCK_STREAM) as listener:
            sender.connect((address, 9))  # sends nothing: it only has the kernel choose the source address
            listener.bind((sender.getsockname()[0], 0))
            listener.listen()
            own, port = listener.getsockname()[:2]
            found, connection = await probe_packet(own, port, timeout)
            if connection is not None:
                connection.close()
            return found == "open"
    except OSError:
        return False


class Prober:
    """Probes all cells, a bounded number at a time, and the controls."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.cells: list[dict[str, Any]] = params["cells"]
        self.control: dict[str, Any] = params["control"] or {}
        self.certificates: str = params["certificates"]
        self.timeout: float = params["timeout"]

    async def run(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what each cell's probe found, and by family what the host reached."""
        gate = asyncio.Semaphore(AT_ONCE)
        made = contexts(self.cells, self.certificates)

        async def one(cell: dict[str, Any]) -> str:
            async with gate:
                context = made[certificate_of(cell)] if cell.get("path") else None
                return await probe(cell, context, self.timeout)

        found = await asyncio.gather(*(one(cell) for cell in self.cells))
        results = dict(zip((cell["id"] for cell in self.cells), found))
        return results, {str(family): await self._control(family, results) for family in FAMILIES}

    async def _control(self, family: int, results: dict[str, str]) -> str:
        named = [self.control[key] for key in ("address", "address6") if self.control.get(key)]
        for address in named:
            if family_of(address) == family:
                found, connection = await probe_packet(address, self.control["port"], self.timeout)
                if connection is not None:
                    connection.close()
                return f"{address} port {self.control['port']}" if found == "open" else ""
        mine = [cell for cell in self.cells if family_of(cell["address"]) == family]
        for cell in mine:
            if reach.admitted(results[cell["id"]]):
                return f"{cell['address']} port {cell['port']}"
        if mine and not named and await reaches_itself(mine[0]["address"], self.timeout):
            return reach.ITSELF
        return ""


def listening() -> list[str]:
    """Every socket of the host that listens."""
    found: set[str] = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(path):
            with open(path, encoding="ascii") as handle:
                found.update(reach.parse_listening(handle.read()))
    return sorted(found)


def main() -> None:
    text = {"type": "str"}
    address = {"type": "str", "required": True}
    port = {"type": "int", "required": True}
    module = AnsibleModule(
        argument_spec={
            "cells": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "destination": text,
                    "address": address,
                    "family": {"type": "int"},
                    "protocol": {"type": "str", "choices": ["tcp"], "default": "tcp"},
                    "port": port,
                    "identity": {"type": "str", "choices": ["none", "own"], "default": "none"},
                    "client": text,
                    "certificate": text,
                    "path": text,
                    "expect": text,
                    "rule": text,
                },
            },
            "control": {"type": "dict", "options": {"address": address, "address6": text, "port": port}},
            "certificates": {"type": "path", "default": "/etc/moat/tls"},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    results, controls = asyncio.run(Prober(module.params).run())
    module.exit_json(
        changed=False, found=results, control=any(controls.values()), controls=controls, listening=listening()
    )


if __name__ == "__main__":
    main()

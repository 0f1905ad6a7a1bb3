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
      certificate: {description: Name of the host's own certificate under the directory of certificates., type: str}
      path: {description: Path to ask for over HTTPS; without it a completed connection is enough., type: str}
      expect: {description: What the plan expects; not used by the probe., type: str}
      rule: {description: Rule id of the plan; not used by the probe., type: str}
  control:
    description: A port that must answer this host, or its refusals prove nothing.
    type: dict
    suboptions:
      address: {description: Address to connect to., type: str, required: true}
      port: {description: Port to connect to., type: int, required: true}
  certificates:
    description: Directory that has a directory for each certificate.
    type: path
    default: /etc/moat/tls
  timeout:
    description: Seconds to wait for an answer.
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
    control: {address: 10.110.0.254, port: 22}
"""

RETURN = r"""
results:
  description: What each cell's probe found, by id; V(open), V(status 200), V(refused), V(timeout), V(unreachable) or V(tls) and a reason.
  type: dict
  returned: always
control:
  description: Whether the positive control answered; without a control, whether any cell did.
  type: bool
  returned: always
"""

import asyncio
import errno
import os
import ssl
from typing import Any

from ansible.module_utils.basic import AnsibleModule

UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.EACCES, errno.EADDRNOTAVAIL)


def client_context(directory: str | None) -> ssl.SSLContext:
    """Return a TLS client that shows the certificate in directory; who answers is the connector's business, not the probe's."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if directory is not None:
        context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
    return context


async def ask(cell: dict[str, Any], context: ssl.SSLContext | None) -> str:
    """Connect, and where a path is given send one request and return its status."""
    reader, writer = await asyncio.open_connection(cell["address"], cell["port"], ssl=context)
    try:
        if context is None:
            return "open"
        request = f"GET {cell['path']} HTTP/1.1\r\nHost: {cell['address']}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        line = (await reader.readline()).decode("latin-1").split()
        return f"status {line[1]}" if len(line) > 1 else "tls closed without an answer"
    finally:
        writer.close()


async def probe(cell: dict[str, Any], certificates: str, timeout: float) -> str:
    """Return what one target answers, in a word."""
    try:
        context = None
        if cell.get("path"):
            own = cell["identity"] == "own" and cell.get("certificate")
            context = client_context(os.path.join(certificates, cell["certificate"]) if own else None)
        return await asyncio.wait_for(ask(cell, context), timeout)
    except asyncio.TimeoutError:
        return "timeout"
    except ssl.SSLError as error:
        return f"tls {error.reason}"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "tls reset" if cell.get("path") else "refused"
    except OSError as error:
        return "unreachable" if error.errno in UNREACHABLE else f"error {error.strerror}"


async def probe_all(cells: list[dict[str, Any]], certificates: str, timeout: float) -> list[str]:
    """Probe all cells, a bounded number at a time."""
    gate = asyncio.Semaphore(128)

    async def one(cell: dict[str, Any]) -> str:
        async with gate:
            return await probe(cell, certificates, timeout)

    return list(await asyncio.gather(*(one(cell) for cell in cells)))


def main() -> None:
    text = {"type": "str"}
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
                    "address": {"type": "str", "required": True},
                    "family": {"type": "int"},
                    "protocol": {"type": "str", "choices": ["tcp"], "default": "tcp"},
                    "port": port,
                    "identity": {"type": "str", "choices": ["none", "own"], "default": "none"},
                    "certificate": text,
                    "path": text,
                    "expect": text,
                    "rule": text,
                },
            },
            "control": {"type": "dict", "options": {"address": {"type": "str", "required": True}, "port": port}},
            "certificates": {"type": "path", "default": "/etc/moat/tls"},
            "timeout": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    cells = module.params["cells"]
    control = module.params["control"]
    targets = cells + ([dict(control, identity="none")] if control else [])
    found = asyncio.run(probe_all(targets, module.params["certificates"], module.params["timeout"]))
    results = {cell["id"]: answer for cell, answer in zip(cells, found)}
    works = found[-1] == "open" if control else any(answer == "open" for answer in found)
    module.exit_json(changed=False, results=results, control=works)


if __name__ == "__main__":
    main()

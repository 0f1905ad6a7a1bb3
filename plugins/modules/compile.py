#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: compile
short_description: Compile the intent of the perimeter into a plan for each host
version_added: 0.1.0
description:
  - Reads C(moat_perimeter) and the hosts' own C(moat_) variables, judges them, runs the policy's own tests and returns what each role of each
    host is to be handed.
  - It runs on the controller only. No host is touched, whatever the result.
  - An intent that is not sound is refused with all its faults in one message, each with its key path, its value and what to write instead.
  - The whole inventory is read whatever C(--limit) says, so a run that is narrowed never narrows the policy.
  - The keys of the intent are described in the file C(docs/intent.md) of the collection, the plan in C(docs/architecture.md).
author:
  - moat.inference contributors (@moat-inference)
requirements:
  - netaddr (on the controller)
options:
  perimeter:
    description:
      - The intent.
      - If omitted, the variable C(moat_perimeter) is read.
    type: raw
  hosts:
    description:
      - Names of the hosts to return. The plan of a host does not depend on it.
      - If omitted, every host is returned.
    type: list
    elements: str
  cells:
    description: Whether to work out the expected reachability of every source and destination, which grows with the square of the hosts.
    type: bool
    default: true
  words:
    description: Whether to return the plan in sentences.
    type: bool
    default: true
  parts:
    description: Whether to return a digest of what each role of each host is handed.
    type: bool
    default: false
attributes:
  action:
    support: full
    description: The work is done by an action plugin.
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: Compile the intent and run its own tests
  moat.inference.compile:
  register: moat_compiled
  run_once: true

- name: See one host's plan only
  moat.inference.compile:
    hosts: [gpu1]
    cells: false
  register: moat_compiled
"""

RETURN = r"""
digest:
  description: SHA-256, in hexadecimal, of all that the plan follows from. Equal digests mean equal plans.
  type: str
  returned: success
domain:
  description: The private DNS suffix and SPIFFE trust domain.
  type: str
  returned: success
hosts:
  description: The plan of each host, by its name; the schema is in C(docs/architecture.md).
  type: dict
  returned: success
roles:
  description: The hosts of each role, by the role's name.
  type: dict
  returned: success
  sample: {firewall: [app1, gpu1], gateway: [gpu1]}
cells:
  description:
    - The expected reachability, by source.
    - A cell has C(id), C(destination), C(address), C(family) (4 or 6), C(protocol), C(port), C(identity) (none or own), C(client), C(certificate),
      C(path), C(expect) and C(rule). M(moat.inference.reach) takes it as it is.
    - C(expect) is V(allow), V(deny), or V(closed) where nothing may listen at all.
    - C(rule) is the id of the rule that admits, or the layer that refuses, C(deny-output), C(deny-input), C(deny-identity) or C(deny-request).
  type: dict
  returned: success, empty unless O(cells=true)
words:
  description: The plan of each host in sentences, by its name.
  type: dict
  returned: success, empty unless O(words=true)
parts:
  description:
    - By host and role, SHA-256 of the role's part of the plan (C(plan)) and of its inputs that the inventory sets (C(inputs)).
    - C(inputs) is empty when one of them cannot be templated, and equals none then.
  type: dict
  returned: success, empty unless O(parts=true)
faults:
  description: What is wrong with the intent, each with C(path), C(value), C(problem) and C(remedy).
  type: list
  elements: dict
  returned: when the intent is refused
"""

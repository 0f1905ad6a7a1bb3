#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: applied
short_description: Keep what was applied to each host, and tell what a plan asks for besides
version_added: 0.2.0
description:
  - Keeps, on the controller, a record of each host in the directory C(applied) of O(state_dir). For each role that the host has it says which
    part of a plan was applied last, and by which files of the collection.
  - With O(state=begun) it compares the plan with the records and returns what is due. A role that is due has no part on record from then on until
    O(state=succeeded), so a run that fails or is killed is taken up by the next one, even with the plan of before.
  - A part covers the role's part of the plan, its inputs that the inventory sets, the public keys of the peers of a private link, and the
    authority's root for certificates.
  - It runs on the controller only. No host is touched, so a host that is changed by hand, or by another controller with a record of its own, is not
    noticed.
author:
  - moat.inference contributors (@moat-inference)
options:
  state:
    description: Whether a run begins, or has succeeded on O(hosts).
    type: str
    choices: [begun, succeeded]
    required: true
  state_dir:
    description: Directory on the controller that keeps what is known of the site.
    type: path
    required: true
  plans:
    description: C(hosts) of M(moat.inference.compile).
    type: dict
    required: true
  parts:
    description: C(parts) of M(moat.inference.compile).
    type: dict
    required: true
  hosts:
    description: Hosts that the run is for, or on which it has succeeded. Others keep their records.
    type: list
    elements: str
    required: true
  changes_only:
    description: Whether only what differs from the records is due. Otherwise every role of every host is.
    type: bool
    default: false
  due:
    description: C(due) that O(state=begun) returned.
    type: dict
    default: {}
  retire:
    description: C(retire) that O(state=begun) returned.
    type: dict
    default: {}
  run_tags:
    description: Tags of the run. A role that they do not apply as a whole keeps its record.
    type: list
    elements: str
    default: [all]
  skip_tags:
    description: Tags that the run leaves out.
    type: list
    elements: str
    default: []
attributes:
  action:
    support: full
    description: The work is done by an action plugin.
  check_mode:
    support: full
    description: No record is written.
  diff_mode:
    support: none
    description: There is nothing to show.
"""

EXAMPLES = r"""
- name: See what a change of the policy asks for
  moat.inference.applied:
    state: begun
    state_dir: "{{ inventory_dir }}/.moat-state"
    plans: "{{ moat_compiled.hosts }}"
    parts: "{{ moat_compiled.parts }}"
    hosts: "{{ ansible_play_hosts_all }}"
    changes_only: true
  register: moat_applied
  run_once: true
"""

RETURN = r"""
due:
  description: Roles to apply, by host, in the order of the plan.
  type: dict
  returned: when begun
  sample: {gpu1: [firewall, gateway]}
known:
  description: With O(changes_only=true), roles that these files of the collection have applied before with the same inputs, by host.
  type: dict
  returned: when begun
retire:
  description: What the plan no longer has, by host, in the order of removal. C(interface) is given for C(private_link).
  type: dict
  returned: when begun
  sample: {app1: [{role: connector}, {role: private_link, interface: moat0}]}
gained:
  description: With O(changes_only=true), hosts whose certificates are not all on record.
  type: list
  elements: str
  returned: when begun
steps:
  description:
    - Names of the task files of each play, by host, in their order. With O(changes_only=true) hosts go their own ways within a play, so a host that a
      peer with a new key is linked to brings its link up in the last play.
  type: dict
  returned: when begun
  sample: {app2: {close: [firewall], proxy: [], names: [], prepare: [look, keys, link], serve: [certificate, connector]}}
hosts:
  description: Hosts with anything to do; when there is none, one host of the plan, so that a group made of them is never missing.
  type: list
  elements: str
  returned: when begun
"""

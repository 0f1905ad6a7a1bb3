#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Close a host but for declared traffic
version_added: 0.1.0
description:
  - Owns the nftables table C(inet moat), the files in C(/etc/moat/firewall) and C(moat-firewall.service), and touches no other table.
  - The chains input, output and forward drop what no rule admits, in IPv4 and IPv6. Loopback, tracked replies, errors about
    admitted flows and the ICMPv6 that IPv6 cannot do without are always admitted.
  - What the kernel has is compared with the ruleset as the same kernel lists it after loading it into a network namespace of its
    own, so a change made by hand shows as drift. Nothing is loaded when nothing differs, so counters survive.
  - When only members of sets differ, only these are replaced. Otherwise the whole table is, in one transaction.
options:
  state:
    description: Whether the table, the files and the unit are there.
    type: str
    choices: [present, absent]
    default: present
  segments:
    description: Networks that the host has an address in. Packets with a source in one of them come in by its interface only.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the segment., type: str, required: true}
      interface: {description: "Name of its interface. Found by O(segments[].addresses) when not given.", type: str}
      addresses: {description: The host's own addresses in the segment., type: list, elements: str}
      networks: {description: Networks of the segment., type: list, elements: str}
  rules:
    description: What is admitted, in the order of evaluation.
    type: list
    elements: dict
    default: []
    suboptions:
      id: {description: "Id of the rule, which is the comment of its nftables rules.", type: str, required: true}
      chain:
        description:
          - Where it applies. V(local) is about connections over the loopback interface to the given ports, which then only
            O(rules[].users) can make.
          - For V(forward) the ports are those asked for before a translation of addresses.
        type: str
        choices: [input, output, forward, local]
        required: true
      protocol: {description: Transport protocol., type: str, choices: [tcp, udp], required: true}
      ports: {description: Destination ports., type: list, elements: int, required: true}
      peers4: {description: "IPv4 networks: destinations in the chain output, otherwise sources.", type: list, elements: str}
      peers6: {description: "IPv6 networks: destinations in the chain output, otherwise sources.", type: list, elements: str}
      segment: {description: Name of the segment whose interface the traffic passes., type: str}
      interface: {description: Name of the interface that the traffic passes., type: str}
      users: {description: Local users that may connect. For the chain V(local) only., type: list, elements: str}
      listeners:
        description: Local users that may answer at the ports, V(root) when none is given. For the chain V(local) only.
        type: list
        elements: str
      comment: {description: What the rule is for., type: str}
      admin:
        description: Whether the operator comes by it. Only such rules are in the table of a host whose ruleset does not load; one is needed.
        type: bool
        default: false
      rate:
        description:
          - How many new connections each address may open, such as V(100/second), and five times that many at once. More are dropped, counted
            and logged as C(deny-rate). For rules of the chain V(input) that are not the operator's.
        type: str
  extra_rules:
    description:
      - Rules that the plan cannot express. Their ids begin with C(extra-), and each is named in a warning on every run.
    type: list
    elements: dict
    default: []
    suboptions:
      id: {description: "Id of the rule, C(extra-) is put before it.", type: str, required: true}
      chain: {description: As in O(rules)., type: str, choices: [input, output, forward, local], required: true}
      protocol: {description: As in O(rules)., type: str, choices: [tcp, udp], required: true}
      ports: {description: As in O(rules)., type: list, elements: int, required: true}
      peers4: {description: As in O(rules)., type: list, elements: str}
      peers6: {description: As in O(rules)., type: list, elements: str}
      segment: {description: As in O(rules)., type: str}
      interface: {description: As in O(rules)., type: str}
      users: {description: As in O(rules)., type: list, elements: str}
      listeners: {description: As in O(rules)., type: list, elements: str}
      comment: {description: As in O(rules)., type: str}
      admin: {description: As in O(rules)., type: bool, default: false}
      rate: {description: As in O(rules)., type: str}
      verdict:
        description: Whether the rule admits, or refuses whatever else admits it, connections that are there as well.
        type: str
        choices: [accept, drop]
        default: accept
      reason: {description: Why the plan cannot say this., type: str, required: true}
  interfaces:
    description:
      - Name of the interface that has each address, as M(moat.inference.preflight) returns it.
      - Without any the host is asked.
    type: dict
    default: {}
  log_rate:
    description: How often each deny is logged at most. Counting and refusing have no limit.
    type: str
    default: 10/minute
  check_connection:
    description:
      - Whether a ruleset that does not admit the SSH connection which the module runs over is refused before anything is touched. With
        V(false) it is left to the confirmation, for a network whose next connection comes another way.
    type: bool
    default: true
  confirm_timeout:
    description: Seconds until a change of the table that was not confirmed over a new connection is taken back, 5 to 600.
    type: int
    default: 45
  confirm_token:
    description: Name of this change, made by the action plugin.
    type: str
    default: ""
notes:
  - A change of the table is confirmed over a new connection before it is kept. Armed before it is applied, a timer of the host takes back
    what is not confirmed in time, the task fails with RV(rolled_back), and a next run begins from the state before. The files that boot
    loads are written only then, so a host that restarts meanwhile has its last confirmed state.
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: On a host without nftables the ruleset is shown as it is written rather than as the kernel lists it.
  diff_mode:
    support: full
    description: Shows the table as the kernel lists it, the files and what happens to the unit.
seealso:
  - module: moat.inference.preflight
"""

EXAMPLES = r"""
- name: Admit administration and nothing else
  moat.inference.firewall:
    rules:
      - {id: in-admin-ssh, chain: input, protocol: tcp, ports: [22], peers4: [10.90.0.0/28], peers6: ["fd00:90::/124"], admin: true}

- name: Let one local user connect to a port on loopback
  moat.inference.firewall:
    rules:
      - {id: in-admin-ssh, chain: input, protocol: tcp, ports: [22], peers4: [10.90.0.0/28], admin: true}
      - {id: local-connector-batch, chain: local, protocol: tcp, ports: [8081], users: [batch]}
"""

RETURN = r"""
reason:
  description: Why something is, or in check mode would be, changed; empty when nothing is.
  type: str
  returned: always
  sample: elements of in-link_4 differ; /etc/moat/firewall/ruleset.nft differs
action:
  description: What happens to the table in the kernel.
  type: str
  returned: always
  sample: elements
extra:
  description: Id and reason of each active rule of O(extra_rules).
  type: list
  elements: dict
  returned: always
changed_files:
  description: Paths that were, or in check mode would be, created, replaced or removed.
  type: list
  elements: str
  returned: always
unit_actions:
  description: Verbs of systemctl(1) for the unit.
  type: list
  elements: str
  returned: always
confirmed:
  description: Whether the change of the table was confirmed over a new connection.
  type: bool
  returned: when the table was changed
cut_entries:
  description: How many entries of connection tracking were deleted, since the table does not admit their flows any more.
  type: int
  returned: when the table was changed
cut_sockets:
  description: How many local sockets of such flows were ended.
  type: int
  returned: when the table was changed
rolled_back:
  description: Whether the host has taken the change back.
  type: bool
  returned: when the change was not confirmed
"""

import pwd
from collections.abc import Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import deploy, files
from ansible_collections.moat.inference.plugins.module_utils import firewall_nft as nft
from ansible_collections.moat.inference.plugins.module_utils import (
    firewall_policy as policies,
)
from ansible_collections.moat.inference.plugins.module_utils.firewall_conflicts import (
    UFW_CONFIGURATION,
    conflicts,
)
from ansible_collections.moat.inference.plugins.module_utils.firewall_flows import cut
from ansible_collections.moat.inference.plugins.module_utils.firewall_host import (
    NAME,
    RULESET,
    Host,
    Work,
    plan_host,
)
from ansible_collections.moat.inference.plugins.module_utils.pending import (
    ssh_connection,
    terms_of,
    timeout_fault,
)
from ansible_collections.moat.inference.plugins.module_utils.preflight import interfaces_by_address
from ansible_collections.moat.inference.plugins.module_utils.run import (
    CommandError,
    Runner,
)


def uid_of(name: str) -> int | None:
    """The number of a user, for nft would resolve a name at boot, before a directory service is there."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def lock_out(policy: policies.Policy, connection: str, interfaces: Mapping[str, str]) -> list[str]:
    """Say why the ruleset would cut off the connection that this run comes over; nothing when it would not."""
    ends = policies.read_connection(connection)
    if ends is None:
        return []
    source, port, server = ends
    if policy.admits(source, port, interfaces.get(str(server))):
        return []
    return [
        f"this ruleset would lock you out: no input rule admits {source} to TCP port {port}, which this run comes from and over."
        " Nothing was touched. Admit that address for administration (in an intent moat_perimeter.admin.from), or run from one"
        " that is admitted. Where the next connection comes another way, check_connection: false leaves it to the confirmation."
    ]


def read_text(path: str) -> str:
    """The text of a file that may be missing."""
    state = files.read_state(path)
    return state.content.decode("utf-8", "replace") if state.content else ""


def plan(
    module: AnsibleModule, host: Host, states: dict[str, deploy.UnitState]
) -> tuple[policies.Policy | None, Work, list[dict[str, str]]]:
    """Return the policy, the work it asks for, and the diff; fail before anything is touched when it cannot be had."""
    params = module.params
    live = host.live()
    if params["state"] == "absent":
        kind = "none" if live is None else "table"
        work = Work(nft.Difference(kind), plan_host(None, "", states), states, live, "", nft.DELETE)
        return None, work, show(host, work, "") if module._diff else []
    try:
        policy = policies.read_policy(params, uid_of, accept_missing_users=module.check_mode)
    except policies.PolicyError as error:
        module.fail_json(msg=str(error), faults=error.faults)
    faults = conflicts(states, read_text(UFW_CONFIGURATION))
    if params["check_connection"]:
        faults += lock_out(policy, ssh_connection(), params["interfaces"])
    if faults:
        module.fail_json(msg="; ".join(faults))
    ruleset = nft.ruleset(policy)
    if not host.installed and not module.check_mode:
        module.fail_json(msg="nft is not installed; install the package nftables")
    difference = nft.Difference("table")
    if host.installed:
        difference = nft.compare(live, nft.complete(host.candidate(nft.candidate(policy)), policy))
    transaction = nft.carry_counters(ruleset, live)
    if difference.kind == "elements":
        transaction = nft.elements_change(policy, difference.sets, live)
    work = Work(difference, plan_host(policy, ruleset, states), states, live, ruleset, transaction)
    if not (module._diff and work.changed):
        return policy, work, []
    return policy, work, show(host, work, host.candidate_text(ruleset) if host.installed else ruleset)


def show(host: Host, work: Work, after: str) -> list[dict[str, str]]:
    """Return Ansible's diff list."""
    entries = []
    shown = work.difference.kind != "none"
    if shown:
        head, before = f"table {nft.TABLE}", nft.without_transient(host.table("-s") or "")
        entries.append({"before_header": head, "after_header": head, "before": before, "after": after})
    for change in [*work.paths.directories, *work.paths.files]:
        # the table's own entry says what the ruleset says
        brief = shown and change.path == RULESET
        entries.append(files.diff_entry(change.path, change.before, change.after, brief))
    return entries + deploy.Plan(units=work.paths.units).diff(work.states)


def misplaced(work: Work) -> list[str]:
    """Name every path that is there as something that must not be replaced."""
    changes = [*work.paths.directories, *work.paths.files]
    return [
        f"{change.path} is there as something else ({change.before.kind}); move it away"
        for change in changes
        if change.before.kind not in ("absent", "directory" if change in work.paths.directories else "file")
    ]


def main() -> None:
    words = {"type": "list", "elements": "str"}
    rule = {
        "id": {"type": "str", "required": True},
        "chain": {"type": "str", "required": True, "choices": ["input", "output", "forward", "local"]},
        "protocol": {"type": "str", "required": True, "choices": ["tcp", "udp"]},
        "ports": {"type": "list", "elements": "int", "required": True},
        "peers4": words,
        "peers6": words,
        "segment": {"type": "str"},
        "interface": {"type": "str"},
        "users": words,
        "listeners": words,
        "comment": {"type": "str"},
        "admin": {"type": "bool", "default": False},
        "rate": {"type": "str"},
    }
    extra = {
        **rule,
        "reason": {"type": "str", "required": True},
        "verdict": {"type": "str", "choices": ["accept", "drop"], "default": "accept"},
    }
    segment = {
        "name": {"type": "str", "required": True},
        "interface": {"type": "str"},
        "addresses": words,
        "networks": words,
    }
    items = {"type": "list", "elements": "dict", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "segments": {**items, "options": segment},
            "rules": {**items, "options": rule},
            "extra_rules": {**items, "options": extra},
            "interfaces": {"type": "dict", "default": {}},
            "log_rate": {"type": "str", "default": "10/minute"},
            "check_connection": {"type": "bool", "default": True},
            "confirm_timeout": {"type": "int", "default": 45},
            "confirm_token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    fault = timeout_fault(module.params["confirm_timeout"])
    if fault:
        module.fail_json(msg=fault)
    runner = Runner(module)
    host = Host(runner, bool(module.get_bin_path("nft")))
    try:
        if module.params["state"] == "present" and not module.params["interfaces"]:
            addresses = runner.run(["ip", "-j", "address"], ok=(0, 127))
            module.params["interfaces"] = interfaces_by_address(addresses.stdout)
        if host.pending.waits:
            module.warn("a change of the firewall waits that was never confirmed; it is taken back first")
            if not module.check_mode:
                host.pending.recover()
        owed = None if module.check_mode else host.pending.owed()
        if owed is not None:
            # the last confirmation was killed before it had ended what the new table does not admit
            cut(runner, owed, ssh_connection())
            host.pending.settle()
        policy, work, diff = plan(module, host, host.unit_states())
    except (OSError, CommandError) as error:
        module.fail_json(msg=f"{error}. Nothing was touched.")
    faults = misplaced(work)
    if faults:
        module.fail_json(msg="; ".join(faults))
    extra_rules = policy.extra if policy else ()
    for item in extra_rules:
        module.warn(f"firewall rule {item.id} is not of the plan; its reason: {item.reason}")
    for name in policy.missing_users if policy else ():
        module.warn(f"this host has no user {name} yet; the firewall is refused until it has")
    terms = terms_of(module.params)
    if work.changed and not module.check_mode:
        try:
            host.apply(work, policy, terms)
        except (OSError, KeyError, CommandError) as error:
            left = host.steps.undo()
            outcome = "but not completely: {}".format("; ".join(left)) if left else "completely"
            module.fail_json(msg=f"{error}. The previous state was restored {outcome}.")
    # also when this took so long that the host has taken the change back meanwhile: that must not pass for kept
    waits = policy is not None and work.difference.kind != "none" and not module.check_mode
    waiting = {"pending": terms.report(NAME)} if waits else {}
    module.exit_json(
        changed=work.changed,
        diff=diff,
        reason=work.reason(),
        action={"table": "load" if work.ruleset else "delete"}.get(work.difference.kind, work.difference.kind),
        extra=[{"id": item.id, "reason": item.reason} for item in extra_rules],
        changed_files=[change.path for change in work.paths.files],
        unit_actions=list(work.actions),
        **waiting,
    )


if __name__ == "__main__":
    main()

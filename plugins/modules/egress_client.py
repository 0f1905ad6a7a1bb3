#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: egress_client
short_description: Have a host's programs use the proxy and the resolvers that are given
version_added: 0.3.0
description:
  - Sets the proxy for apt, dnf, pip, podman, Docker, an environment file and named units. Values go into files that are there without touching
    anything else in them; a file that cannot be read is refused, and nothing is touched.
  - Sets the resolvers in C(/etc/resolv.conf), and in systemd-resolved where that is, once each that is new has answered a query from this
    host.
  - What the module has set is remembered in C(/etc/moat/egress/state.json). What is not wanted any more goes, and what was there before comes
    back.
  - If anything fails, the previous files come back.
options:
  proxies:
    description:
      - URLs of the proxies, such as V(http://10.130.0.10:3128). Without any, what was set goes.
      - Several have one name with all their addresses, C(moat-egress-proxy) in C(/etc/hosts), so a program tries the next one when one does
        not answer.
    type: list
    elements: str
    default: []
  no_proxy:
    description: Names and networks that are reached without it. apt is told only the names.
    type: list
    elements: str
    default: []
  resolvers:
    description:
      - Addresses of the resolvers, of which the first three are used. Without any, what was there before the first comes back.
      - An address of the host itself is taken even if nothing answers there yet.
    type: list
    elements: str
    default: []
  domain:
    description: Domain to search, and to ask the resolvers for.
    type: str
    default: ""
  units:
    description: Services that get the environment file, and are restarted when it changes while they run. A model server is refused.
    type: list
    elements: str
    default: []
  targets:
    description: What uses the proxy. One that is not installed is left out.
    type: list
    elements: str
    choices: [apt, dnf, pip, podman, docker, environment]
    default: [apt, dnf, pip, podman, docker, environment]
notes:
  - Docker is not restarted, for that may stop containers. A warning says when it needs to be.
  - Where NetworkManager or resolvconf writes C(/etc/resolv.conf), the resolvers are refused with the remedy.
author:
  - moat.inference contributors (@moat-inference)
attributes:
  check_mode:
    support: full
    description: A resolver that does not answer yet is a warning.
  diff_mode:
    support: full
    description: Shows the files and what happens to the units.
seealso:
  - module: moat.inference.routes
"""

EXAMPLES = r"""
- name: Use the proxy and the private resolver
  moat.inference.egress_client:
    proxies: [http://10.130.0.10:3128]
    no_proxy: [localhost, inference.internal, 10.0.0.0/8]
    resolvers: [10.140.0.53]
    domain: inference.internal
    units: [backup.service]
"""

RETURN = r"""
changed_files:
  description: Paths that were, or in check mode would be, created, replaced or removed.
  type: list
  elements: str
  returned: always
left_out:
  description: Targets whose program is not there.
  type: list
  elements: str
  returned: always
proxy:
  description: URL that programs use; empty without a proxy.
  type: str
  returned: always
  sample: http://10.130.0.10:3128
restarted:
  description: Units that were, or in check mode would be, restarted.
  type: list
  elements: str
  returned: always
unanswered:
  description: Resolvers that are this host itself and do not answer yet.
  type: list
  elements: str
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import egress_client as client
from ansible_collections.moat.inference.plugins.module_utils.egress_client_host import Work
from ansible_collections.moat.inference.plugins.module_utils.run import CommandError, Runner


def main() -> None:
    words = {"type": "list", "elements": "str", "default": []}
    targets = ["apt", "dnf", "pip", "podman", "docker", "environment"]
    module = AnsibleModule(
        argument_spec={
            "proxies": words,
            "no_proxy": words,
            "resolvers": words,
            "domain": {"type": "str", "default": ""},
            "units": words,
            "targets": {"type": "list", "elements": "str", "choices": targets, "default": targets},
        },
        supports_check_mode=True,
    )
    faults = client.faults_of(module.params)
    if faults:
        module.fail_json(msg="; ".join(faults))
    try:
        work = Work(Runner(module), module.params, module.check_mode)
        for warning in work.warnings:
            module.warn(warning)
        report = {
            "changed": work.changed,
            "diff": work.diff(),
            "changed_files": work.changed_files(),
            "left_out": work.target.left_out,
            "proxy": client.proxy_of(module.params["proxies"])[0],
            "restarted": [unit for _action, unit in work.actions],
            "unanswered": work.unanswered,
        }
        if work.changed and not module.check_mode:
            work.apply()
    except (OSError, ValueError, RuntimeError, CommandError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**report)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: certificate
short_description: Keep the certificates of a host's workloads
version_added: 0.1.0
description:
  - Judges the key, certificate, bundle and root of each item and says why one must be issued anew. With a single-use token it
    makes a key on the host, has it signed by step-ca and puts all files of the item in place in one step.
  - Without a token it issues nothing, asks no authority and lists in RV(enrol) what needs one, so an unchanged host
    does not depend on the authority. Wrong modes and owners are put right, and items that are no longer listed are removed.
  - After it issued a certificate it reloads the service that uses it, if that runs, and fails unless the service serves it.
author:
  - moat.inference contributors (@moat-inference)
options:
  items:
    description: Certificates to have; every other one that this module keeps is removed with its timer.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the certificate on this host; a DNS label., type: str, required: true}
      common_name: {description: Common name., type: str, required: true}
      dns: {description: DNS names., type: list, elements: str, default: []}
      uris: {description: "URIs, such as a SPIFFE identity.", type: list, elements: str, default: []}
      lifetime: {description: "Time that it is valid, from 5m to 24h.", type: str, default: 24h}
      reload_unit: {description: Service that uses it., type: str, default: ""}
      probe: {description: "Where the service presents it over TLS, as address:port.", type: str, default: ""}
  ca_url:
    description: URL of the authority, such as V(https://10.140.0.10:9443). Needed with any item.
    type: str
    default: ""
  root:
    description: Root certificates of the authority in PEM. Empty keeps to the root on the host; nothing can be issued then.
    type: str
    default: ""
  bundle_group:
    description: Group that may read the bundle.
    type: str
    default: root
  tokens:
    description: Single-use tokens by name of the item. Tokens for other names are ignored.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the item., type: str, required: true}
      token: {description: The token., type: str, required: true}
  renew_interval:
    description: Seconds between two runs of the timer. Refused together with O(renew_jitter) when a lifetime is too short for it.
    type: int
    default: 900
  renew_jitter:
    description: Seconds by which the timer delays each run at random.
    type: int
    default: 300
  renew_key:
    description: Whether a renewal makes a new key.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Says what would be issued; neither root nor token is needed.
  diff_mode:
    support: full
    description: Shows names and lifetime of each certificate, never a key.
"""

EXAMPLES = r"""
- name: See what must be enrolled
  moat.inference.certificate:
    items:
      - name: gateway
        common_name: gpu1.gateway.inference.internal
        dns: [gpu1.gateway.inference.internal]
        uris: ["spiffe://inference.internal/gateway/gpu1"]
        reload_unit: moat-gateway.service
    ca_url: https://10.140.0.10:9443
    root: "{{ lookup('ansible.builtin.file', 'ca-root.pem', rstrip=false) }}"
    bundle_group: haproxy
  register: certificates
"""

RETURN = r"""
certificates:
  description: Each item as it was found, or as it was issued.
  type: list
  elements: dict
  returned: success
  contains:
    name: {description: Name of the item., type: str, returned: always}
    recreate_reason:
      description: Why it was, or must be, issued anew; empty when it is good.
      type: str
      returned: always
      sample: sans
    issued: {description: Whether this call issued it., type: bool, returned: always}
    serial: {description: Serial number in hexadecimal., type: str, returned: when there is a certificate}
    not_after: {description: "End of validity, in seconds since 1970.", type: int, returned: when there is a certificate}
enrol:
  description: Items that need a token, with the names that it must grant.
  type: list
  elements: dict
  returned: success
  sample:
    - {name: gateway, common_name: gpu1.gateway.inference.internal, sans: [gpu1.gateway.inference.internal]}
settings:
  description: Settings of the renewal, as files for M(moat.inference.deploy).
  type: list
  elements: dict
  returned: success
stale:
  description: Names of items that were, or would be, removed.
  type: list
  elements: str
  returned: success
messages:
  description: What the services that use the certificates did.
  type: list
  elements: str
  returned: success
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.moat.inference.plugins.module_utils import certificate, certificate_store
from ansible_collections.moat.inference.plugins.module_utils.certificate_renew import SETTINGS
from ansible_collections.moat.inference.plugins.module_utils.certificate_served import Service
from ansible_collections.moat.inference.plugins.module_utils.certificate_store import CertificateError
from ansible_collections.moat.inference.plugins.module_utils.run import Runner


class Keeper:
    """Brings the items of one call to their state."""

    def __init__(self, module: AnsibleModule) -> None:
        params = module.params
        self._module = module
        self._items = params["items"]
        self._root = params["root"]
        self._store = certificate_store.Store(group=params["bundle_group"])
        self._authority = certificate_store.Authority(params["ca_url"])
        self._tokens = {entry["name"]: entry["token"] for entry in params["tokens"]}
        self.changed = False
        self.diff: list[dict[str, str]] = []
        self.report: list[dict[str, Any]] = []
        self.enrol: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.faults: list[str] = []

    def keep(self, request: certificate.Request) -> None:
        """Judge one item; issue it if it must be and a token is there."""
        if self._store.foreign(request.name):
            path = self._store.path(request.name)
            self.faults.append(f"{path} is there and was not made by this role; move it away")
            return
        found = self._store.read(request.name)
        reasons = certificate.recreate_reasons(request, found, self._root, int(time.time()))
        entry: dict[str, Any] = {"name": request.name, "recreate_reason": ", ".join(reasons), "issued": False}
        token = self._tokens.get(request.name)
        if not reasons:
            self._put_right(request)
        elif token is None or self._module.check_mode:
            names = {"common_name": request.common_name, "sans": request.sans}
            self.enrol.append({"name": request.name, **names})
            if self._module.check_mode:
                self._will(request, found, reasons)
        else:
            self._will(request, found, reasons)
            issued = self._issue(request, token)
            entry["issued"] = issued is not None
            found = issued or found
        if found.certificate is not None:
            entry.update(serial=f"{found.certificate.serial:x}", not_after=found.certificate.not_after)
        self.report.append(entry)

    def _will(self, request: certificate.Request, found: certificate.Found, reasons: list[str]) -> None:
        self.changed = True
        before = certificate.describe_certificate(found.certificate, request.lifetime)
        self._show(request.name, before, certificate.describe(request) + f"# issued anew: {', '.join(reasons)}\n")

    def _show(self, name: str, before: str, after: str) -> None:
        path = self._store.path(name)
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def _issue(self, request: certificate.Request, token: str) -> certificate.Found | None:
        if not self._root:
            self.faults.append(
                f"{request.name}: no root certificate; give it in root, it comes from the authority's host"
            )
            return None
        try:
            with certificate_store.lock(request.name):
                certificate_store.enrol(self._store, request, self._authority, self._root, token, int(time.time()))
        except (CertificateError, OSError, ValueError) as error:
            self.faults.append(f"{request.name}: {error}; the files that were there are untouched")
            return None
        except KeyError as error:
            self.faults.append(f"{request.name}: no such group: {error}; make it or give another bundle_group")
            return None
        return self._store.read(request.name)

    def _put_right(self, request: certificate.Request) -> None:
        wrong = self._store.wrong_attributes(request.name)
        if not wrong:
            return
        self.changed = True
        self._show(request.name, "", "".join(f"# mode and owner put right: {file}\n" for file in wrong))
        if not self._module.check_mode:
            try:
                self._store.set_attributes(os.path.realpath(self._store.path(request.name)), wrong)
            except (OSError, KeyError) as error:
                self.faults.append(f"{request.name}: mode and owner could not be put right: {error}")

    def settle(self, requests: list[certificate.Request]) -> None:
        """Have the services take what was issued."""
        issued = {entry["name"] for entry in self.report if entry["issued"]}
        for request in requests:
            if request.name in issued:
                try:
                    Service(request, self._store, self.messages.append).settle(renewed=True)
                    # a renewal that failed for want of a good certificate is no longer true
                    unit = f"moat-certificate@{request.name}.service"
                    Runner(self._module).run(["systemctl", "reset-failed", "--", unit], ok=range(256))
                except (CertificateError, OSError) as error:
                    self.faults.append(f"{request.name}: {error}")

    def stale(self) -> list[str]:
        """Return the names that this host keeps and that are no longer wanted."""
        kept = set(self._store.names())
        if os.path.isdir(SETTINGS):
            kept |= {file[: -len(".json")] for file in os.listdir(SETTINGS) if file.endswith(".json")}
        return sorted(kept - {item["name"] for item in self._items})

    def remove(self, name: str) -> None:
        """Stop the timer of an item and remove its files."""
        self.changed = True
        self._show(name, f"# certificate, key and timer of {name}\n", "")
        if self._module.check_mode:
            return
        runner = Runner(self._module)
        unit = f"moat-certificate@{name}"
        runner.run(["systemctl", "disable", "--now", "--", unit + ".timer"], ok=range(256))
        runner.run(["systemctl", "stop", "--", unit + ".timer", unit + ".service"], ok=range(256))
        runner.run(["systemctl", "reset-failed", "--", unit + ".service"], ok=range(256))
        settings = os.path.join(SETTINGS, name + ".json")
        if os.path.lexists(settings):
            os.unlink(settings)
        self._store.remove(name)


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "items": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "common_name": {"type": "str", "required": True},
                    "dns": names,
                    "uris": names,
                    "lifetime": {"type": "str", "default": "24h"},
                    "reload_unit": {"type": "str", "default": ""},
                    "probe": {"type": "str", "default": ""},
                },
            },
            "ca_url": {"type": "str", "default": ""},
            "root": {"type": "str", "default": ""},
            "bundle_group": {"type": "str", "default": "root"},
            "tokens": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": False,
                "options": {
                    "name": {"type": "str", "required": True},
                    "token": {"type": "str", "required": True, "no_log": True},
                },
            },
            "renew_interval": {"type": "int", "default": 900},
            "renew_jitter": {"type": "int", "default": 300},
            "renew_key": {"type": "bool", "default": True, "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    faults = certificate.request_faults(
        params["items"], params["ca_url"], params["renew_interval"], params["renew_jitter"]
    )
    if params["root"]:
        try:
            if not certificate.fingerprints(params["root"]):
                raise ValueError("no certificate in it")
        except ValueError as error:
            faults.append(f"root: not PEM ({error}); give the authority's root certificate")
    if faults:
        module.fail_json(msg="; ".join(faults))
    keeper = Keeper(module)
    requests = [certificate.request_of(item) for item in params["items"]]
    try:
        for request in requests:
            keeper.keep(request)
        keeper.settle(requests)
        stale = keeper.stale()
        for name in stale:
            keeper.remove(name)
    except (CertificateError, OSError) as error:
        keeper.faults.append(str(error))
    if keeper.faults:
        module.fail_json(msg="; ".join(keeper.faults), changed=keeper.changed)
    module.exit_json(
        changed=keeper.changed,
        diff=keeper.diff,
        certificates=keeper.report,
        enrol=keeper.enrol,
        settings=[
            {
                "path": f"{SETTINGS}/{item['name']}.json",
                "content": certificate.render_settings(
                    item, params["ca_url"], params["bundle_group"], params["renew_key"]
                ),
            }
            for item in params["items"]
        ],
        stale=stale,
        messages=keeper.messages,
    )


if __name__ == "__main__":
    main()

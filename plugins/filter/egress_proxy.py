# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role egress_proxy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.display import Display
from ansible_collections.moat.inference.plugins.module_utils import egress_proxy
from ansible_collections.moat.inference.plugins.module_utils.egress_proxy_inputs import EgressProxyError


def egress_proxy_config(settings: Mapping[str, Any], group: str = "proxy") -> list[dict[str, Any]]:
    """Return the egress proxy's files for the deploy module."""
    try:
        result: list[dict[str, Any]] = egress_proxy.files(settings, group)
    except EgressProxyError as error:
        raise AnsibleFilterError(str(error)) from error
    extra = str(settings["extra_config"] or "").strip()
    if extra:
        Display().warning(
            f"egress_proxy_extra_config adds {len(extra.splitlines())} line(s) to squid.conf that nothing but Squid checks"
        )
    return result


class FilterModule:
    """The filters that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"egress_proxy_config": egress_proxy_config}

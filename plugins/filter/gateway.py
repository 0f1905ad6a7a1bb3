# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.moat.inference.plugins.module_utils import gateway, gateway_inputs


def gateway_config(settings: Mapping[str, Any], lua: str, group: str = "haproxy") -> list[dict[str, Any]]:
    """Return the gateway's files for the deploy module."""
    try:
        return gateway.files(settings, lua, group)
    except gateway_inputs.GatewayError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"gateway_config": gateway_config}

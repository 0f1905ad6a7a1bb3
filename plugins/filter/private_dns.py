# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters of the role private_dns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.moat.inference.plugins.module_utils import private_dns


def private_dns_config(settings: Mapping[str, Any], group: str = "unbound") -> list[dict[str, Any]]:
    """Return the resolver's files for the deploy module."""
    try:
        return private_dns.files(settings, group)
    except private_dns.PrivateDnsError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters that Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"private_dns_config": private_dns_config}

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads one map of the intent, value by value: a wrong type is a fault, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import (
    PRIVATE_WORDS,
    Address,
    AddressError,
    Network,
    is_private,
    parse_address,
    parse_network,
    sort_networks,
)
from ansible_collections.moat.inference.plugins.module_utils.perimeter.faults import Absent, Faults, kind, suggest
from ansible_collections.moat.inference.plugins.module_utils.perimeter.names import is_label, label_remedy
from ansible_collections.moat.inference.plugins.module_utils.perimeter.special import is_host

PORTS = (1, 65535)


class Section:
    """One map of the intent. A value that is absent or refused reads as None; the fault is already noted."""

    def __init__(self, faults: Faults, path: str, value: Any, keys: tuple[str, ...]) -> None:
        self.faults = faults
        self.path = path
        self.usable = isinstance(value, dict)
        self.data: dict[Any, Any] = value if isinstance(value, dict) else {}
        if not self.usable:
            faults.add(path, value, f"is {kind(value)}, not a map", f"write a map with the keys {', '.join(keys)}")
        for key in self.data:
            here = f"{path}.{key}"
            if key not in keys and not faults.is_secret(here):
                faults.add(here, Absent, "is an unknown key", suggest(key, keys))

    def take(self, key: str, required: str = "") -> Any:
        """The raw value; `required` is the remedy named when it is not there."""
        value = self.data.get(key)
        if value is None and required and self.usable:
            self.faults.add(f"{self.path}.{key}", Absent, "is missing", required)
        return value

    def section(self, key: str, keys: tuple[str, ...]) -> Section:
        """A map that need not be there."""
        value = self.take(key)
        return Section(self.faults, f"{self.path}.{key}", {} if value is None else value, keys)

    def text(self, key: str, required: str = "", check: Callable[[str], str | None] | None = None) -> str | None:
        """A string; `check` returns the remedy when the string will not do."""
        value = self.take(key, required)
        if value is None:
            return None
        return self.string(f"{self.path}.{key}", value, check)

    def string(self, path: str, value: Any, check: Callable[[str], str | None] | None = None) -> str | None:
        """The value at a path, which must be a string that is not empty."""
        if self.faults.is_secret(path):
            return None
        if not isinstance(value, str) or not value:
            self.faults.add(
                path,
                value,
                f"is {kind(value) if value != '' else 'empty'}, not a string with a value",
                "write a string, in quotes",
            )
            return None
        remedy = check(value) if check else None
        if remedy:
            self.faults.add(path, value, "will not do", remedy)
            return None
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None, required: str = "") -> str | None:
        value = self.text(key, required)
        if value is None:
            return default
        if value in choices:
            return value
        self.faults.add(f"{self.path}.{key}", value, "is no choice here", suggest(value, choices))
        return default

    def number(self, key: str, low: int, high: int, default: int) -> int:
        value = self.optional_number(key, low, high)
        return default if value is None else value

    def optional_number(self, key: str, low: int, high: int) -> int | None:
        value = self.take(key)
        if value is None or not self._in_range(f"{self.path}.{key}", value, low, high):
            return None
        return int(value)

    def _in_range(self, path: str, value: Any, low: int, high: int) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            self.faults.add(
                path,
                value,
                f"is {kind(value)}, not an integer",
                f"write an integer between {low} and {high}, without quotes",
            )
        elif not low <= value <= high:
            self.faults.add(path, value, "is out of range", f"write an integer between {low} and {high}")
        else:
            return True
        return False

    def boolean(self, key: str, default: bool) -> bool:
        value = self.take(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.faults.add(
            f"{self.path}.{key}", value, f"is {kind(value)}, not a boolean", "write true or false, without quotes"
        )
        return default

    def items(self, key: str, required: str = "", single: bool = False) -> Iterator[tuple[str, Any]]:
        """Path and value of each item of a list; with `single`, a lone string is a list of one."""
        value = self.take(key, required)
        path = f"{self.path}.{key}"
        if value is None or self.faults.is_secret(path):
            return
        if single and isinstance(value, str):
            yield path, value
        elif not isinstance(value, (list, tuple)):
            self.faults.add(
                path, value, f"is {kind(value)}, not a list", "write a list, in brackets or one item a line after '- '"
            )
        elif not value and required:
            self.faults.add(path, Absent, "is an empty list", required)
        else:
            for index, item in enumerate(value):
                yield f"{path}[{index}]", item

    def texts(
        self, key: str, required: str = "", single: bool = False, check: Callable[[str], str | None] | None = None
    ) -> dict[str, str]:
        """A list of different strings in the order written, each with its path."""
        found: dict[str, str] = {}
        for path, item in self.items(key, required, single):
            text = self.string(path, item, check)
            if text is not None and text in found:
                self.faults.add(path, text, "is there twice", "remove one of the two")
            elif text is not None:
                found[text] = path
        return found

    def ports(self, key: str, default: tuple[int, ...] = (), required: str = "") -> tuple[int, ...]:
        if self.data.get(key) == [] and default:
            shown = ", ".join(str(port) for port in default)
            self.faults.add(
                f"{self.path}.{key}", Absent, "is an empty list", f"name its ports, or remove it for {shown}"
            )
        found = [item for path, item in self.items(key, required) if self._in_range(path, item, *PORTS)]
        return tuple(sorted(set(found))) if found else default

    def networks(self, key: str, required: str) -> tuple[Network, ...]:
        """Private networks, sorted; an address alone is a network of one."""
        found = []
        for path, item in self.items(key, required, single=True):
            network = read_network(self.faults, path, item)
            if network is not None:
                found.append(network)
        return sort_networks(found)

    def addresses(self, key: str, required: str) -> tuple[Address, ...]:
        """Different addresses of other hosts, in the order written."""
        found: list[Address] = []
        for path, item in self.items(key, required, single=True):
            address = read_address(self.faults, path, item)
            if address in found:
                self.faults.add(path, item, "is there twice", "remove one of the two")
            elif address is not None:
                found.append(address)
        return tuple(found)

    def network(self, key: str, family: int) -> Network | None:
        return read_network(self.faults, f"{self.path}.{key}", self.take(key), family)

    def named(self, key: str, required: str = "") -> Iterator[tuple[str, str, Any]]:
        """Name, path and value of each entry of a map whose keys are names, sorted by name."""
        value = self.take(key, required)
        path = f"{self.path}.{key}"
        if value is None or self.faults.is_secret(path):
            return
        if not isinstance(value, dict):
            self.faults.add(path, value, f"is {kind(value)}, not a map", "write a map: a name, a colon, then its keys")
            return
        for name, item in sorted(value.items(), key=lambda pair: str(pair[0])):
            here = f"{path}.{name}"
            if self.faults.is_secret(here):
                continue
            if not isinstance(name, str):
                self.faults.add(here, name, f"is {kind(name)}, not a name", f'write the name in quotes: "{name}"')
            elif not is_label(name):
                self.faults.add(here, name, "is no DNS label", label_remedy(name))
            # A refused name is still read: other faults show now, and what refers to it is not refused as unknown.
            yield str(name), here, item


def read_address(faults: Faults, path: str, value: Any, family: int = 0) -> Address | None:
    """One address that another host may have, private or public, of the family asked for; anything else is a fault."""
    if value is None or faults.is_secret(path):
        return None
    if not isinstance(value, str):
        faults.add(path, value, f"is {kind(value)}, not an address", "write one address in quotes")
        return None
    try:
        address = parse_address(value)
    except AddressError as error:
        faults.add(path, value, error.problem, error.remedy)
        return None
    if family and address.family != family:
        remedy = f"write an IPv{family} address here"
        faults.add(path, value, f"is IPv{address.family} where IPv{family} belongs", remedy)
    elif not is_host(address):
        faults.add(path, value, "is no address of another host", "write the address that the other host has")
    else:
        return address
    return None


def read_network(faults: Faults, path: str, value: Any, family: int = 0) -> Network | None:
    """A private network, of the family asked for; anything else is a fault."""
    if value is None:
        return None
    if not isinstance(value, str):
        faults.add(
            path,
            value,
            f"is {kind(value)}, not a network",
            "write a network in quotes, such as 10.120.0.0/24 or fd00:120::/64",
        )
        return None
    try:
        network = parse_network(value)
    except AddressError as error:
        faults.add(path, value, error.problem, error.remedy)
        return None
    if family and network.family != family:
        faults.add(path, value, f"is IPv{network.family} where IPv{family} belongs", f"move it to cidr{network.family}")
    elif network.prefix == 0:
        faults.add(
            path, value, "is every address there is", "name the private networks that are meant, such as 10.90.0.0/28"
        )
    elif not is_private(network):
        faults.add(path, value, "is a public address where a private one belongs", f"write one of {PRIVATE_WORDS}")
    else:
        return network
    return None

# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The intent once it is read: typed, sorted, and free of anything that depends on the order of keys.

`select` and `wanted` keep the path at which each name was written, for the faults.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.moat.inference.plugins.module_utils.perimeter.addresses import Address, Network


@dataclass(frozen=True)
class Segment:
    name: str
    networks: tuple[Network, ...]
    vlan: int | None
    written: tuple[int, ...] = ()  # the families that a network was written for, even if it was refused
    routers: tuple[Address, ...] = ()
    default_route: bool = True

    def router(self, family: int) -> Address | None:
        return next((router for router in self.routers if router.family == family), None)

    def network(self, family: int) -> Network | None:
        return next((network for network in self.networks if network.family == family), None)


@dataclass(frozen=True)
class Link:
    network4: Network
    network6: Network
    port: int
    interface: str

    @property
    def networks(self) -> tuple[Network, Network]:
        return self.network4, self.network6


@dataclass(frozen=True)
class Admin:
    sources: tuple[Network, ...]
    ports: tuple[int, ...]
    metrics_port: int


@dataclass(frozen=True)
class Authority:
    host: str
    port: int
    lifetime: str


@dataclass(frozen=True)
class Model:
    name: str
    select: dict[str, str]
    engine: str
    source: str
    engine_args: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    gpus: dict[str, dict[str, str]] | None = (
        None  # host, or * for each, -> name of a GPU -> its path; None is every GPU
    )
    shared: bool = False


@dataclass(frozen=True)
class Limits:
    requests_per_second: int
    burst: int
    concurrent: int


@dataclass(frozen=True)
class Client:
    name: str
    select: dict[str, str]
    users: tuple[str, ...]
    wanted: dict[str, str]
    limits: Limits
    port: int | None
    hosts: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted(self.wanted))


@dataclass(frozen=True)
class Service:
    name: str
    select: dict[str, str]
    networks: tuple[Network, ...]
    protocol: str
    ports: tuple[int, ...]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Egress:
    index: int
    select: dict[str, str]
    host: str
    ports: tuple[int, ...]
    reason: str | None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parent:
    address: Address
    port: int


@dataclass(frozen=True)
class Proxy:
    select: dict[str, str]
    port: int
    networks: tuple[Network, ...]  # where it may connect to; every public network when empty
    resolvers: tuple[Address, ...]
    parents: tuple[Parent, ...]
    upload_limit: str | None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forward:
    to: tuple[Address, ...]
    select: dict[str, str]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dns:
    select: dict[str, str]
    forward: Forward | None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicyTest:
    index: int
    client: str
    model: str
    allow: bool


@dataclass
class Intent:
    """The whole intent; maps are sorted by name."""

    domain: str
    segments: dict[str, Segment]
    link: Link
    admin: Admin
    ca: Authority
    gateway_port: int
    models: dict[str, Model]
    clients: dict[str, Client]
    services: dict[str, Service]
    egress: tuple[Egress, ...]
    proxy: Proxy | None
    dns: Dns | None
    tests: tuple[PolicyTest, ...]


@dataclass(frozen=True)
class Host:
    """A host of the perimeter, or a probe outside it (then without segment and link addresses)."""

    name: str
    addresses: tuple[Address, ...]
    segment: str = ""
    interface: str | None = None
    link: tuple[Address, ...] = ()
    probe: bool = False

    def address(self, family: int) -> Address | None:
        return next((address for address in self.addresses if address.family == family), None)

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(address.family for address in self.addresses)

"""What a backend must do. Containers are one; QEMU machines with the same table can be another."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.lab.table import Host, Network


@dataclass(frozen=True)
class File:
    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Spec:
    """All that a host is made of. A host whose digest differs from its spec is made anew."""

    host: Host
    image: str
    files: tuple[File, ...] = ()
    mounts: tuple[tuple[Path, str], ...] = field(default=())  # read-only: (here, there)
    digest: str = ""


class Backend(Protocol):
    def prepare(self, networks: dict[str, Network]) -> None:
        """Networks with no way out; the controller has an address only where the table gives it one."""

    def digest(self, name: str) -> str | None:
        """The digest of the spec that the host was created from; None when there is no such host."""

    def create(self, spec: Spec) -> None:
        """Make the host, stopped, with its files in place; an older one of that name goes first."""

    def start(self, name: str) -> None: ...

    def stop(self, name: str) -> None: ...

    def kill(self, name: str) -> None:
        """The power is cut."""

    def freeze(self, name: str) -> None:
        """The host answers nobody any more, and loses nothing."""

    def thaw(self, name: str) -> None: ...

    def destroy(self, name: str) -> None: ...

    def status(self, name: str) -> str:
        """running, stopped or absent."""

    def put(self, name: str, files: tuple[File, ...]) -> None: ...

    def read(self, name: str, path: str) -> str | None:
        """A file of the host; None while it is not there."""

    def hosts(self) -> list[str]:
        """Every host of this backend that exists, also one the table no longer has."""

    def remove_networks(self) -> None: ...

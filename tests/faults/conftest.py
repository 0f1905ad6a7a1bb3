"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import gpu_hosts, run


@pytest.fixture(scope="module")
def as_it_was() -> Iterator[None]:
    """The lab has the intent of the repository before and after, and a record of it."""
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]
    yield
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]


@pytest.fixture(scope="session")
def gpu_repository() -> Iterator[gpu_hosts.Repository]:
    """The stand-in for the driver's repository, with hosts that are made beside it."""
    served = gpu_hosts.Repository()
    try:
        yield served
    finally:
        served.remove()

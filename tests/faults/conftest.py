"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import gpu_hosts, run


def settle(playbook: str) -> None:
    """Where the lab's record says that something is to be done, it is done; the site playbook looks at each host itself."""
    ended = run.play(playbook)
    assert ended.rc == 0, ended.out[-4000:]


@pytest.fixture(scope="module")
def as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """The lab, once converged, has the intent of the repository before and after, and a record of it; where a test failed, each host is mended."""
    failed = request.session.testsfailed
    settle("moat.inference.policy")
    yield
    settle("moat.inference.site" if request.session.testsfailed > failed else "moat.inference.policy")


@pytest.fixture(scope="session")
def gpu_repository() -> Iterator[gpu_hosts.Repository]:
    """The stand-in for the driver's repository, with hosts that are made beside it."""
    served = gpu_hosts.Repository()
    try:
        yield served
    finally:
        served.remove()

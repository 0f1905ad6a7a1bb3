"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import run


@pytest.fixture(scope="module")
def as_it_was() -> Iterator[None]:
    """The lab has the intent of the repository before and after, and a record of it."""
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]
    yield
    ended = run.play()
    assert ended.rc == 0, ended.out[-4000:]

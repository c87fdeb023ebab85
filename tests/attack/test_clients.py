"""A hostile client or stranger gets nothing: the short form of `make attack`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack import hostile_clients
from tests.client import ZmqClient

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX limits")


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[ZmqClient]:
    with ZmqClient(model) as sidecar:
        yield sidecar


@posix
def test_half_open_connections_beyond_the_soft_limit_take_nothing_from_the_client(
    model: Path,
) -> None:
    """256 is what macOS allows a process before it asks for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        sidecar = ZmqClient(model)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < 600:
        pytest.skip("this process may not open enough connections itself")
    with sidecar:
        hostile_clients.use_up_descriptors(sidecar, 300)


def test_what_strangers_send_before_a_key_is_given_back(served: ZmqClient) -> None:
    hostile_clients.fill_memory_without_a_key(served, 3, 64 * hostile_clients.MEBIBYTE)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_has_one_reply_however_its_id_is_used(served: ZmqClient, seed: int) -> None:
    codes = hostile_clients.use_ids_again(served, 600, seed)
    assert codes["ok"]
    assert codes["request.duplicate_id"]

"""What the tests of the real process share: the command under test, model directories, a client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import client, stand_in
from tests.client import Client, StdioClient, ZmqClient

TRANSPORTS = {"zmq": ZmqClient, "stdio": StdioClient}


@pytest.fixture(scope="session")
def sidecar_command() -> list[str]:
    """The frozen program that VISION_SIDECAR names, else `python -m sidecar`."""
    return client.command()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory to read, not to change."""
    return stand_in.make(tmp_path_factory.mktemp("models") / "stand-in")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose runs take seconds, over hundreds of nodes."""
    return stand_in.make(tmp_path_factory.mktemp("models") / "slow", slow=True)


@pytest.fixture(scope="module", params=TRANSPORTS)
def sidecar(request: pytest.FixtureRequest, model: Path) -> Iterator[Client]:
    """A process that the tests of a file share, over each transport; none may end it."""
    with TRANSPORTS[request.param](model) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> type[StdioClient] | type[ZmqClient]:
    """For a process of one's own: `with transport(model) as sidecar`."""
    return TRANSPORTS[request.param]

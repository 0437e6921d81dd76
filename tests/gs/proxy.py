"""A proxy in front of the emulator of Cloud Storage that delays, refuses and drops requests."""

import http.client
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[[str, str], int | float | None]
"""(method, path) -> None to pass a request on, a status to answer with, 0 to drop the connection, or seconds to
wait as a float."""


def passing(method: str, path: str) -> int | float | None:
    """Pass every request on."""
    return None


class Proxy:
    """A server that passes requests on to `target`, host:port, unless `fault` says otherwise; `requests` lists them."""

    def __init__(self, target: str) -> None:  # noqa: C901, the methods of the handler see the proxy
        self.target = target
        self.fault: Fault = passing
        self.requests: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else an answer in two parts takes 40 ms

            def _handle(self) -> None:
                body = self._body()
                proxy.requests.append((self.command, self.path))
                found = proxy.fault(self.command, self.path)
                if isinstance(found, float):
                    time.sleep(found)
                elif found == 0:
                    self.close_connection = True
                    return
                elif found is not None:
                    self._answer(found, [("Content-Type", "application/json")], b'{"error": {"message": "by test"}}')
                    return
                connection = http.client.HTTPConnection(target, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                connection.request(self.command, self.path, body or None, headers | {"Content-Length": str(len(body))})
                answer = connection.getresponse()
                content = answer.read()
                self._answer(answer.status, [h for h in answer.getheaders() if h[0].lower() not in _HOP], content)
                connection.close()

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                pass  # a client that was killed, or that has given up

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


_HOP = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "expect"}

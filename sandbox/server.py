"""A thin HTTP edge over the core: HTTP/1.1 with kept connections, on the loopback by default."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sandbox.core import CONTROL_PATH, Sandbox, Setup, crashed
from sandbox.courier import Courier
from sandbox.wire import Request, Response

_LARGEST_BODY_BYTES = 10_000_000


class SandboxServer:
    """A sandbox listening on a port, with its courier; `stop` ends every thread and socket."""

    def __init__(self, sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> None:
        self.sandbox = sandbox
        self._http = _Server((host, port), sandbox)
        self._courier = Courier(sandbox)
        self._thread = threading.Thread(target=self._serve, name="sandbox-http", daemon=True)

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as `http://127.0.0.1:8080`."""
        host, port = self._http.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"{self.origin}{self.sandbox.setup.base_path}"

    @property
    def control_url(self) -> str:
        """Where the control API is."""
        return f"{self.origin}{CONTROL_PATH}"

    @property
    def token(self) -> str:
        """The bearer token that the API wants."""
        return self.sandbox.setup.token

    def start(self) -> None:
        """Answer requests and send notifications from now on."""
        self._thread.start()
        self._courier.start()

    def stop(self) -> None:
        """Close the port and every connection, and wait for all threads."""
        self._http.shutdown()
        self._thread.join()
        self._http.stopping.set()
        self._http.close_connections()
        self._http.server_close()
        self._courier.stop()

    def _serve(self) -> None:
        self._http.serve_forever(poll_interval=0.02)


@contextlib.contextmanager
def serving(setup: Setup | None = None) -> Iterator[SandboxServer]:
    """Run a sandbox in this process, on a free port, for the length of a `with` block."""
    server = SandboxServer(Sandbox(setup))
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close joins them
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], sandbox: Sandbox) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.sandbox = sandbox
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wake every thread that waits for a client's next request."""
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent about clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing: the record holds every request."""

    def _handle(self) -> None:
        body = self._body()
        if body is None:
            self._send(Response(status=413))
            self.close_connection = True
            return
        if not self._is_whole(body):
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(method=self.command, target=self.path, headers=headers, body=body)
        try:
            response = self.server.sandbox.handle(request)
        except Exception as error:  # noqa: BLE001 - a bug of ours must not look like a hang-up
            response = crashed(error)
        if response.delay_seconds:
            self.server.stopping.wait(response.delay_seconds)
        if response.dropped:
            self.close_connection = True
        else:
            self._send(response)

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        chunked = "Transfer-Encoding" in self.headers
        if chunked or not length.isdigit() or int(length) > _LARGEST_BODY_BYTES:
            return None
        return self.rfile.read(int(length))

    def _is_whole(self, body: bytes) -> bool:
        """Tell whether the client lived to send all of it."""
        return len(body) == int(self.headers.get("Content-Length", "0"))

    def _send(self, response: Response) -> None:
        head = [
            f"HTTP/1.1 {response.status} {_phrase(response.status)}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        # One write, so that head and body leave in one packet.
        self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1") + response.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815 - the base class's names


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "Unknown")

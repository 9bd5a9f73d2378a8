"""`llada-sft report RUN --serve`: the page on this machine only, with data that stays fresh.

The server listens on the loopback interface. Two kinds of others could still ask it, and get
nothing:

- Other users of a login node: the address has a random part that only the terminal shows.
- Pages in the user's browser whose name was made to lead here (DNS rebinding): the Host header
  must name this machine.
"""

import hashlib
import hmac
import secrets
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from llada_sft.errors import LaunchError
from llada_sft.report.html import policy

LOOPBACK = "127.0.0.1"
_HOSTS = frozenset({LOOPBACK, "localhost"})
# A connection that sends nothing is closed.
_TIMEOUT_S = 30
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class ReportServer(ThreadingHTTPServer):
    """Serves the page and its data.

    Args:
        port: 0 chooses a free one.
        page: Returns the page.
        data: Returns its data as JSON.

    Raises:
        LaunchError: The port cannot be used.
    """

    daemon_threads = True

    def __init__(self, port: int, page: Callable[[], str], data: Callable[[], str]) -> None:
        self.token = secrets.token_urlsafe(16)
        self._makers = {"": (page, "text/html"), "data.json": (data, "application/json")}
        self._busy = Lock()
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "must be from 0 to 65535"
            raise LaunchError(
                f"--serve {port}: {reason}; without a port a free one is used"
            ) from None

    @property
    def address(self) -> str:
        """The page's address, with the random part."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def make(self, path: str) -> tuple[bytes, str] | None:
        """Return what is at a path, and its type; None if nothing is."""
        token, slash, name = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()) or not slash:
            return None
        if name not in self._makers:
            return None
        maker, kind = self._makers[name]
        # Two open pages do not read the files at the same time.
        with self._busy:
            return maker().encode(), kind


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer
    timeout = _TIMEOUT_S
    server_version, sys_version = "llada-sft", ""

    def do_GET(self) -> None:
        if not is_this_machine(self.headers.get_all("Host") or []):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        made = self.server.make(self.path.partition("?")[0])
        if made is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        content, kind = made
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        unchanged = self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if unchanged else HTTPStatus.OK)
        self._send_headers({"ETag": tag, "Content-Type": f"{kind}; charset=utf-8"})
        if kind == "text/html":
            self.send_header("Content-Security-Policy", f"{policy(True)}; frame-ancestors 'none'")
        self.send_header("Content-Length", "0" if unchanged else str(len(content)))
        self.end_headers()
        if not unchanged:
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self._send_headers({"Content-Length": "0"})
        self.end_headers()

    def _send_headers(self, more: dict[str, str]) -> None:
        for name, value in {**_HEADERS, **more}.items():
            self.send_header(name, value)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address in it would show the random part in a log."""


def is_this_machine(hosts: list[str]) -> bool:
    """Return whether a request's Host headers, exactly one, name the loopback interface.

    Any port: it may be another one at the user's end of an SSH tunnel.
    """
    return len(hosts) == 1 and hosts[0].rsplit(":", 1)[0].lower() in _HOSTS


def serve_until_interrupted(server: ReportServer) -> None:
    """Print where the page is, and serve it until Ctrl-C."""
    print(server.address)
    node, port = socket.gethostname(), server.server_port
    print(f"from another machine:  ssh -L {port}:{LOOPBACK}:{port} {node}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()

"""The dashboard's server: which address it listens on, which host names and origins it answers, and the token."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dashboards.launch import APP, command, free_port, is_loopback, listening, wait_until_up
from interp.cli import main
from interp.errors import UsageError

TOKEN = "a-token-of-the-tests_0123456789"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: streamlit\r\n"


class Server:
    """A running dashboard and plain requests to it."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def status(self, path: str = "/", *, host: str = "", headers: str = "") -> tuple[int, str]:
        """(status, everything that came back) of one GET with this Host header."""
        asked = f"GET {path} HTTP/1.1\r\nHost: {host or f'127.0.0.1:{self.port}'}\r\n{headers}"
        closing = "" if "Upgrade" in headers else "Connection: close\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(f"{asked}{closing}\r\n".encode())
            answer = b""
            while b"\r\n\r\n" not in answer or ("Upgrade" not in headers and connection):
                piece = connection.recv(1 << 16)
                if not piece:
                    break
                answer += piece
        text = answer.decode("utf-8", errors="replace")
        return int(text.split(" ", 2)[1]), text

    def websocket(self, *, host: str = "", origin: str | None = None, headers: str = "") -> int:
        """Status of a WebSocket handshake: 101 is a connection."""
        said = f"Origin: {origin}\r\n" if origin else ""
        return self.status("/_stcore/stream", host=host, headers=UPGRADE + said + headers)[0]

    def addresses(self) -> set[str]:
        """Addresses that the server and its children listen on."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        found = [one.net_connections(kind="tcp") for one in family]
        return {link.laddr.ip for links in found for link in links if link.status == psutil.CONN_LISTEN}


@contextmanager
def serving(folder: Path, line: Callable[[int], list[str]], port: int, **environment: str) -> Iterator[Server]:
    """A server started in `folder`, answering before the block begins; it ends with the block."""
    with open(folder / "server.log", "ab") as log:
        settings = {**os.environ, "INTERP_STORE": str(folder / "runs"), "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            line(port), cwd=folder, env=settings, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        assert wait_until_up(port, process, 90), (folder / "server.log").read_text()
        yield Server(process, port)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.terminate()
        process.wait(30)


def interp_dash(*words: str) -> Callable[[int], list[str]]:
    """The command line of `interp dash` on a port."""
    return lambda port: [sys.executable, "-m", "interp", "dash", "--no-browser", "--port", str(port), *words]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("local")
    with serving(folder, interp_dash(), free_port(None, "127.0.0.1")) as server:
        yield server


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("exposed")
    with serving(folder, interp_dash("--expose"), free_port(None, "0.0.0.0"), INTERP_DASH_TOKEN=TOKEN) as server:
        yield server


def test_only_this_machine_can_reach_it(local):
    assert local.addresses() == {"127.0.0.1"}
    assert local.status()[0] == 200
    assert local.websocket(origin=f"http://127.0.0.1:{local.port}") == 101


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1.evil.example"])
def test_a_page_of_another_origin_opens_no_websocket(local, origin):
    assert local.websocket(origin=origin) == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example@127.0.0.1", "[::1]evil"])
def test_a_rebound_host_name_gets_no_page_and_no_websocket(local, host):
    assert local.status(host=host)[0] in (400, 403)
    assert local.status("/_stcore/health", host=host)[0] in (400, 403)
    assert local.websocket(host=host, origin=f"http://{host}") in (400, 403)


def test_the_page_may_load_from_its_own_server_only_and_is_not_framed_elsewhere(local):
    status, text = local.status("/emergence?run=x")
    assert status == 200
    head = text.partition("\r\n\r\n")[0].lower()
    for part in ("default-src 'self'", "connect-src 'self' data: blob:", "frame-ancestors 'self'", "object-src 'none'"):
        assert part in head
    assert "x-content-type-options: nosniff" in head
    assert "referrer-policy: no-referrer" in head


def test_neither_telemetry_nor_other_peoples_files_are_served(local):
    assert '"gatherUsageStats":true' not in local.status("/_stcore/host-config")[1].replace(" ", "")
    for path in ("/app/static/secret", "/../../../../etc/passwd", "/static/../../../../etc/passwd", "//etc/passwd"):
        assert "root:" not in local.status(path)[1]


def test_without_the_token_an_exposed_server_shows_nothing(exposed):
    assert exposed.addresses() == {"0.0.0.0"}
    for path in ("/", "/_stcore/health", "/static/js/index.js", "/?token=wrong-token-of-the-tests_0123", "/?token="):
        status, text = exposed.status(path)
        assert status == 403
        assert TOKEN not in text
    assert exposed.websocket(origin=f"http://127.0.0.1:{exposed.port}") == 403
    assert exposed.websocket(headers="Cookie: interp_token=wrong\r\n") == 403


def test_the_token_moves_from_the_address_into_a_cookie_that_scripts_cannot_read(exposed):
    status, text = exposed.status(f"/emergence?run=a%26b&token={TOKEN}")
    head = text.lower()
    assert status == 303
    assert "location: /emergence?run=a%26b\r\n" in head
    assert "httponly" in head
    assert "samesite=strict" in head
    assert exposed.status("/", headers=f"Cookie: x=1; interp_token={TOKEN}\r\n")[0] == 200
    assert exposed.websocket(host="lab-7.example", headers=f"Cookie: interp_token={TOKEN}\r\n") == 101


def test_the_redirect_stays_on_this_server(exposed):
    text = exposed.status(f"//evil.example/?token={TOKEN}")[1]
    location = next((line for line in text.splitlines() if line.lower().startswith("location: ")), "location: /")
    assert not location.split(": ")[1].startswith(("//", "/\\", "http"))
    injected = exposed.status(f"/%0d%0aSet-Cookie:%20stolen=1?token={TOKEN}")[1]
    assert not [line for line in injected.splitlines() if line.lower().startswith("set-cookie: stolen")]


def test_the_token_is_not_on_the_command_line_of_the_server(exposed):
    family = psutil.Process(exposed.process.pid).children(recursive=True)
    assert family
    assert not [one for one in family if TOKEN in " ".join(one.cmdline())]


def test_streamlit_alone_is_as_safe_from_any_folder(tmp_path):
    plain = lambda port: [sys.executable, "-m", "streamlit", "run", str(APP), f"--server.port={port}"]  # noqa: E731
    with serving(tmp_path, plain, free_port(None, "127.0.0.1")) as server:
        assert server.addresses() == {"127.0.0.1"}
        assert server.status(host="evil.example")[0] == 403
        assert server.websocket(host="evil.example", origin="http://evil.example") == 403


def test_streamlit_told_to_listen_everywhere_without_a_token_shows_nothing(tmp_path):
    weak = lambda port: [*command(port, address="0.0.0.0", hosts=("*",))]  # noqa: E731
    with serving(tmp_path, weak, free_port(None, "0.0.0.0"), INTERP_DASH_TOKEN="short") as server:
        status, text = server.status()
        assert status == 403
        assert "interp dash --expose --token TOKEN" in text
        assert server.websocket(headers="Cookie: interp_token=short\r\n") == 403


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--expose"], "--expose lets other machines in, so it needs a token; for example --token "),
        (["--expose", "--token", "short"], "the token must be 16 or more"),
        (["--token", "has spaces and is long enough"], "the token must be 16 or more"),
        (["nowhere"], "unknown run 'nowhere'"),
        (["../nowhere"], "is not allowed"),
    ],
)
def test_wrong_usage_starts_nothing(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("INTERP_DASH_TOKEN", raising=False)
    assert main(["dash", "--no-browser", "--store", str(tmp_path / "runs"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_is_said_and_without_one_the_next_is_used():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        number = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {number} is taken"):
            free_port(number, "127.0.0.1")
        assert free_port(None, "127.0.0.1", number) > number
        assert free_port(None, "127.0.0.1") != number


def test_what_counts_as_this_machine_alone():
    assert [name for name in ("127.0.0.1", "::1", "localhost", "127.8.8.8") if not is_loopback(name)] == []
    assert [name for name in ("", None, "0.0.0.0", "::", "192.168.1.2", "example.com") if is_loopback(name)] == []
    assert listening(False, None) == ("127.0.0.1", ("localhost", "127.0.0.1"))

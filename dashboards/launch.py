"""How the dashboard is started safely: address, token, store, and the Streamlit command line."""

import ipaddress
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from streamlit import config

from interp.console import say
from interp.errors import InterpError, UsageError
from interp.run import Store

STORE, TOKEN = "INTERP_STORE", "INTERP_DASH_TOKEN"
SHORTEST_TOKEN = 16
GOOD_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{SHORTEST_TOKEN},200}}")
APP = Path(__file__).with_name("app.py")
ANY, LOOPBACK_NAMES = "*", ("localhost", "127.0.0.1")
FIRST_PORT = 8501


def open_store() -> Store:
    """The store named by INTERP_STORE; the folder `runs` of the working directory where it is not set."""
    return Store(os.environ.get(STORE) or "runs")


def is_loopback(address: str | None) -> bool:
    """True for an address that only this machine can reach; Streamlit takes an empty one for every interface."""
    if address == "localhost":
        return True
    try:
        return bool(address) and ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def refusal(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why this server must not answer: it can be reached from other machines and has no token. None: it may."""
    address = config.get_option("server.address")
    if is_loopback(address) or len(environment.get(TOKEN, "")) >= SHORTEST_TOKEN:
        return None
    return (
        f"This dashboard listens on {address or 'every interface'} without a token, so it shows nothing. "
        "Start it with: interp dash --expose --token TOKEN"
    )


def options(port: int, *, address: str = "127.0.0.1", hosts: tuple[str, ...] = LOOPBACK_NAMES) -> list[str]:
    """Streamlit's options, given on the command line so that no configuration file of the user weakens them."""
    settings = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": "true",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.fileWatcherType": "none",
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "browser.serverAddress": "localhost",  # else Streamlit asks an outside server for this machine's address
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    return words + [f"--server.allowedHosts={host}" for host in hosts]


def command(port: int, *, address: str = "127.0.0.1", hosts: tuple[str, ...] = LOOPBACK_NAMES) -> list[str]:
    """The command line that starts the server."""
    return [sys.executable, "-m", "streamlit", "run", str(APP), *options(port, address=address, hosts=hosts)]


def serve(store: Path, run: str | None, *, port: int | None, browser: bool, expose: bool, token: str | None) -> int:
    """Start the server, print its address, open the browser, and wait until it ends; returns the exit code.

    Raises:
        UsageError: a run that does not exist, --expose without a good token, or a port that is taken.
    """
    opened = Store(store)
    if run is not None:
        opened.run(run)
    address, hosts = listening(expose, token)
    number = free_port(port, address, FIRST_PORT)
    environment = {**os.environ, STORE: str(opened.root), **({TOKEN: token} if token else {})}
    # stderr stays: it has the tracebacks of defects. A session of its own, so that Ctrl-C reaches this process alone.
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
    server = subprocess.Popen(command(number, address=address, hosts=hosts), env=environment, **quiet)
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, _interrupt)
    try:
        if not wait_until_up(number, server):
            raise InterpError("the dashboard did not start; its own words are above")
        where = url(number, run, token)
        say(f"dashboard: {where}")
        if expose:
            say(f"from another machine: {where.replace('127.0.0.1', socket.gethostname(), 1)}")
        say("Ctrl-C ends it; jobs it has started go on")
        if browser:
            webbrowser.open(where)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def _interrupt(number: int, frame: Any) -> None:
    """The end of the terminal ends the server too."""
    raise KeyboardInterrupt


def listening(expose: bool, token: str | None) -> tuple[str, tuple[str, ...]]:
    """Address to listen on, and the host names that are answered.

    Raises:
        UsageError: if other machines could reach it and there is no token, or the token is short or odd.
    """
    if token is not None and not GOOD_TOKEN.fullmatch(token):
        raise UsageError(f"the token must be {SHORTEST_TOKEN} or more of A-Z a-z 0-9 - _; such as {new_token()}")
    if not expose:
        return "127.0.0.1", LOOPBACK_NAMES
    if token is None:
        raise UsageError(f"--expose lets other machines in, so it needs a token; for example --token {new_token()}")
    return "0.0.0.0", (ANY,)  # a page of another host name has no cookie, so every name may be used


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_hex(20)


def free_port(wanted: int | None, address: str, first: int | None = None) -> int:
    """The wanted port; without one the first free one of a hundred from `first`, or any that the system gives.

    Raises:
        UsageError: if the wanted port, or all of the hundred, are taken.
    """
    if wanted is None and first is None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
            return probe.getsockname()[1]
    for number in [wanted] if wanted is not None else range(first, first + 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex(("127.0.0.1", number)) != 0 and _binds(probe, address, number):
                return number
    raise UsageError(f"port {wanted or first} is taken; give another with --port")


def _binds(probe: socket.socket, address: str, number: int) -> bool:
    try:
        probe.bind((address, number))
    except OSError:
        return False
    return True


def url(port: int, run: str | None, token: str | None) -> str:
    """The address to open: the run at its emergence view, or the list of runs."""
    query = {key: value for key, value in (("run", run), ("token", token)) if value}
    path = "emergence" if run else ""
    return f"http://127.0.0.1:{port}/{path}" + (f"?{urlencode(query)}" if query else "")


def wait_until_up(port: int, server: "subprocess.Popen[bytes]", seconds: float = 60.0) -> bool:
    """True once the server takes connections; False if it has ended or the time is over."""
    limit = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < limit:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


def stop(server: "subprocess.Popen[bytes]", grace: float = 5.0) -> None:
    """End the server, by force after the grace."""
    server.terminate()
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()

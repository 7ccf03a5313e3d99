"""Drives an installed headless Chromium over its DevTools pipe: no port, no download, no extra package."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--no-default-browser-check", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-extensions", "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars", "--metrics-recording-only",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
]  # fmt: skip
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


def require_chromium() -> str:
    """Path of the browser; skips the test where there is none, fails it where REQUIRE_BROWSER=1."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        missing = f"no Chromium on the path (looked for {', '.join(NAMES)}); install the chromium package"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)  # CI sets REQUIRE_BROWSER=1 and so cannot pass without one
    return found


# Chromium reads commands on descriptor 3 and answers on 4; a shell could not redirect descriptors above 9.
START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""

# A look after 10 ms, so that looking again and again leaves the page time to change.
LATER = """
new Promise((done, fail) => setTimeout(() => { try { done(%s); } catch (error) { fail(error); } }, 10))
"""


class BrowserError(RuntimeError):
    """The browser refused a command, threw in the page, or did not answer in time."""


class NotYet(BrowserError):
    """An expression threw, or its page went away under it: on a page that is still changing, worth another look."""


class Pipe:
    """Null-terminated DevTools messages over two pipes, with the events that came between the replies."""

    def __init__(self, to_browser: int, from_browser: int, limit: float = 90.0):
        self._out, self._in, self._limit = to_browser, from_browser, limit
        self._buffer = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its reply."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._out, rest) :]
        end = time.monotonic() + self._limit
        while True:
            reply = self._next(end, method)
            if reply.get("id") == self._last:
                if "error" in reply:
                    error = NotYet if method == "Runtime.evaluate" else BrowserError
                    raise error(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self.events.append(reply)

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """The next event of that name, from those already here or still to come."""
        end = time.monotonic() + self._limit
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") == session and not event.get("taken"):
                    event["taken"] = True
                    return event
            self.events.append(self._next(end, method))

    def _next(self, end: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer to {waiting_for} within {self._limit:.0f} s")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise BrowserError(f"the browser closed while waiting for {waiting_for}")
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Page:
    """One tab: go somewhere, look, move the pointer, press keys, and tell what was requested and logged."""

    def __init__(self, pipe: Pipe):
        self._pipe = pipe
        target = pipe.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = pipe.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command to this tab."""
        return self._pipe.send(method, self._session, **params)

    def view(
        self, width: int = 1280, height: int = 900, scheme: str = "light", scale: float = 1, media: str = ""
    ) -> None:
        """Size of the window, preferred colour scheme and medium."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    def goto(self, url: str) -> None:
        """Load a page and wait for its load event."""
        self._pipe.events = [e for e in self._pipe.events if e.get("method") != "Page.loadEventFired"]
        self.send("Page.navigate", url=url)
        self._pipe.wait_for("Page.loadEventFired", self._session)
        self.settle()

    def settle(self) -> None:
        """Wait for two painted frames, after which pending observers have run."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise NotYet(json.dumps(reply["exceptionDetails"].get("exception", {}).get("description")))
        return reply["result"].get("value")

    def until(self, claim: str | Callable[[], Any], limit: float = 120.0) -> float:
        """Seconds until the expression (or function) is true; one that throws is not true yet.

        A view is drawn in parts, in no promised order, so whatever a test looks at or clicks is waited for.

        Raises:
            BrowserError: if it is not true within the limit, with what the page shows by then.
        """
        began, thrown = time.monotonic(), None
        while True:
            try:
                if self.evaluate(LATER % claim) if isinstance(claim, str) else claim():
                    return time.monotonic() - began
            except NotYet as error:
                thrown = str(error)
            if time.monotonic() - began > limit:
                shown = self.evaluate("document.body.innerText")[:2000]
                raise BrowserError(f"not within {limit:.0f} s: {claim}: {thrown}: {self.complaints()}: {shown}")

    def press_on(self, element: str) -> None:
        """Click what the expression finds, as soon as it finds it."""
        self.until(f"((found) => Boolean(found) && (found.click(), true))({element})")

    def hover(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str) -> None:
        """Press and release one key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = KEYS.get(key, ord(key[0].upper()))
        extra = {"text": text} if text else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **extra)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)
        self.settle()

    def screenshot(self, path: Path | None = None, full: bool = False, clip: dict[str, float] | None = None) -> bytes:
        """PNG of the window, of a part, or of the whole page."""
        extra = {"clip": {"scale": 1, **clip}} if clip else {}
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full or bool(clip), **extra)[
            "data"
        ]
        picture = base64.b64decode(data)
        if path:
            path.write_bytes(picture)
        return picture

    def pdf(self, path: Path) -> bytes:
        """The page as print would give it, on A4."""
        reply = self.send(
            "Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False, preferCSSPageSize=True
        )
        path.write_bytes(base64.b64decode(reply["data"]))
        return path.read_bytes()

    def requests(self) -> list[str]:
        """Addresses of everything that was requested by this tab."""
        return [e["params"]["request"]["url"] for e in self._own("Network.requestWillBeSent")]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, and log entries such as policy violations."""
        said = [e["params"] for e in self._own("Runtime.consoleAPICalled")]
        found = [json.dumps(p["args"]) for p in said if p["type"] in ("error", "warning", "assert")]
        found += [e["params"]["exceptionDetails"]["text"] for e in self._own("Runtime.exceptionThrown")]
        entries = [e["params"]["entry"] for e in self._own("Log.entryAdded")]
        return found + [entry["text"] for entry in entries if entry["level"] in ("error", "warning")]

    def _own(self, method: str) -> list[dict[str, Any]]:
        return [e for e in self._pipe.events if e.get("method") == method and e.get("sessionId") == self._session]

    def close(self) -> None:
        """Close the tab."""
        self._pipe.send("Target.closeTarget", targetId=self._target)


@contextmanager
def chromium(profile: Path) -> Iterator[Pipe]:
    """A browser with a new, empty profile; it ends with the block."""
    program = require_chromium()
    child_in, to_browser = os.pipe()
    from_browser, child_out = os.pipe()
    ends = [str(child_in), str(child_out)]
    browser = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    command = [sys.executable, "-I", "-c", START, *ends, *browser]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(child_in, child_out), start_new_session=True, **quiet)
    os.close(child_in)
    os.close(child_out)
    try:
        pipe = Pipe(to_browser, from_browser)
        pipe.send("Browser.getVersion")
        yield pipe
        pipe.send("Browser.close")
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)

"""The guard in front of every request and WebSocket: which host name, and which token."""

import hmac
import os
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from streamlit import config
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

from dashboards.launch import SHORTEST_TOKEN, TOKEN, refusal

COOKIE, PARAMETER = "interp_token", "token"
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """ASGI middleware. A request passes if its Host is allowed, the address is safe, and the token (if any) is right.

    The token comes once in the address (`?token=...`), is moved into a cookie that scripts cannot read, and is taken
    out of the address by a redirect, so that a link copied later does not hold it.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on, redirect, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        token = os.environ.get(TOKEN, "")
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = dict(query).get(PARAMETER)
        if not config.get_option("server.allowedHosts") or not is_host_allowed(headers.get("host")):
            await _refuse(scope, receive, send, "this host name is not allowed")
        elif reason := refusal():
            await _refuse(scope, receive, send, reason)
        elif not token or _same(_cookie(headers.get("cookie", "")), token):
            await self.app(scope, receive, _hardened(send))
        elif scope["type"] == "http" and len(token) >= SHORTEST_TOKEN and given is not None and _same(given, token):
            await _enter(scope, send, token, [pair for pair in query if pair[0] != PARAMETER])
        else:
            await _refuse(scope, receive, send, "this dashboard needs the token that `interp dash` was started with")


def _same(given: str | None, token: str) -> bool:
    """Compared in a time that does not depend on where they differ."""
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def _cookie(text: str) -> str | None:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _hardened(send: Any) -> Any:
    """`send` that adds the headers which keep a page from being framed or its address from leaking."""

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def _enter(scope: dict[str, Any], send: Any, token: str, rest: list[tuple[str, str]]) -> None:
    """Set the cookie and send the browser to the same address without the token."""
    where = quote(scope["path"]) + (f"?{urlencode(rest)}" if rest else "")
    cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", ("/" + where.lstrip("/\\")).encode()), (b"set-cookie", cookie.encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: dict[str, Any], receive: Any, send: Any, reason: str) -> None:
    """403 in either protocol."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"refused: {reason}\n".encode()})

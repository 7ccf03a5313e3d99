"""Serves the page that loads the dashboard: Streamlit's own, told where its server is, and kept to that server."""

from functools import cache
from pathlib import Path
from typing import Any

from streamlit.file_util import get_static_dir

# Everything the browser may load comes from this server; a view, a chart or a token cannot reach another one.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
# Streamlit guesses where its server is from the address, and first asks below the path of the view, which is not there.
TOLD = "<script>window.__streamlit = {BACKEND_BASE_URL: location.origin + '/'};</script>"


class Front:
    """ASGI middleware that answers the paths of views itself; everything else goes on to Streamlit."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The page for GET of `/` and of `/VIEW`."""
        if scope["type"] == "http" and scope["method"] == "GET" and is_view(scope["path"]):
            body = page()
            headers = [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"content-security-policy", POLICY.encode()),
                (b"cache-control", b"no-cache"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self.app(scope, receive, send)


def is_view(path: str) -> bool:
    """True for `/` and for one plain segment, which is how views are addressed."""
    name = path.strip("/")
    return not name or (name.replace("_", "").isalnum() and name[0] != "_" and name not in {"media", "static"})


@cache
def page() -> bytes:
    """Streamlit's index.html with the line that tells it where its server is, and our title."""
    text = (Path(get_static_dir()) / "index.html").read_text(encoding="utf-8")
    text = text.replace("<title>Streamlit</title>", "<title>interp</title>", 1)
    return text.replace("<head>", f"<head>{TOLD}", 1).encode()

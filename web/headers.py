"""What every answer tells a browser: to run nothing, to frame nothing, to guess nothing and to pass nothing on."""

from __future__ import annotations

from quart import Quart, Response

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""A page that needs something else, such as its own script, sets that header itself."""


def harden(app: Quart) -> None:
    """Have every answer carry the headers, unless it has said otherwise itself."""

    @app.after_request
    async def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

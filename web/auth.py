"""Who may call what: every endpoint is open by name, or needs a scope.

Without a secret key the service listens to this machine alone, and whoever is on it may do everything. With one, a
caller sends `Authorization: Bearer` with an access token (POST /auth/token), a service token (`cli.py token create`),
or the secret key itself, which may do everything.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import MappingProxyType

from quart import Quart, g, request

import telemetry
from access import SCOPES, TOKEN_PREFIX, Caller, Scope
from errors import NotAuthorized, ScopeMissing
from store.access import select_user_by_id, use_token
from web.access_tokens import AccessTokens, derive_key
from web.cross_site import refuse_other_names, refuse_other_sites
from web.service import Service, current_service

OPEN_ENDPOINTS = frozenset(
    {"hello_world", "health.live", "health.ready", "sample.serve_catalogue", "sign_in.issue_token"}
)
"""Endpoints for everybody: they change nothing of the mirror, and show nothing of it."""

NEEDED_SCOPES: MappingProxyType[str, Scope] = MappingProxyType(
    {
        "sync_data": "sync",
        "runs.list_runs": "read",
        "runs.show_run": "read",
        "changes.list_changes": "read",
        "tables.list_tables": "read",
        "tables.list_rows": "read",
        "tables.show_row": "read",
        "tables.show_history": "read",
        "sources.list_sources": "read",
        "sources.show_source": "read",
        "symbols.show_all": "read",
        "symbols.show_symbol": "read",
        "symbols.show_history": "read",
        "ping.ping": "read",
        "undo.undo_run": "admin",
        "undo.pause_source": "admin",
        "undo.resume_source": "admin",
    }
)
"""What a caller must be allowed by endpoint; one that is not named here needs `admin`."""

THIS_MACHINE = Caller(name="this machine", scopes=frozenset(SCOPES))
SECRET_KEY_HOLDER = Caller(name="secret key", scopes=frozenset(SCOPES))


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What follows from the secret key."""

    digest: bytes
    """Compared instead of the key itself, so that not even its length can be found out by timing."""
    tokens: AccessTokens
    slots: bytes
    """Keeps those who would block somebody's sign-in from finding out with whom that one shares a slot."""

    @classmethod
    def of(cls, secret_key: str, *, token_lifetime_seconds: int) -> Keys:
        """Derive the keys."""
        return cls(
            digest=_digest(secret_key.encode()),
            tokens=AccessTokens(secret_key, lifetime_seconds=token_lifetime_seconds),
            slots=derive_key(secret_key, "sign-in slots"),
        )


def guard(app: Quart, *, keys: Keys | None, is_loopback: Callable[[str], bool]) -> None:
    """Have every endpoint that is not open refuse whoever may not call it."""

    @app.before_request
    async def refuse_strangers() -> None:
        # An unknown address is answered 404 by the routing, which comes after this.
        if request.url_rule is None:
            return
        if request.endpoint not in OPEN_ENDPOINTS or request.method == "POST":
            refuse_other_sites(request)
        g.keys = keys
        if request.endpoint in OPEN_ENDPOINTS:
            return
        if keys is None:
            refuse_other_names(request, is_loopback)
            g.caller = THIS_MACHINE
            return
        g.caller = await identify(keys, _bearer(), current_service())
        telemetry.bind(caller=g.caller.name)
        require(NEEDED_SCOPES.get(request.endpoint or "", "admin"))


def require(scope: Scope) -> None:
    """Raise ScopeMissing unless the caller of the current request may do what needs `scope`."""
    _demand(g.caller, scope)


def confirmation(scope: Scope) -> Callable[[], Awaitable[None]]:
    """Return what raises NotAuthorized or ScopeMissing once the caller may not do any more what needs `scope`.

    For answers that last, and may outlive the rights of whoever asked.
    """
    keys: Keys | None = g.keys
    service = current_service()
    token = _bearer() if keys else ""

    async def confirm() -> None:
        if keys is not None:
            _demand(await identify(keys, token, service), scope)

    return confirm


def _demand(caller: Caller, scope: Scope) -> None:
    if not caller.may(scope):
        raise ScopeMissing(f"This needs the scope {scope}.", scope=scope)


async def identify(keys: Keys, token: str, service: Service) -> Caller:
    """Return whose token it is; raise NotAuthorized if it proves nothing."""
    if hmac.compare_digest(_digest(token.encode("latin-1", "replace")), keys.digest):
        return SECRET_KEY_HOLDER
    holder = _holder(token, service) if token.startswith(TOKEN_PREFIX) else _signed_in(keys.tokens, token, service)
    found = await holder
    if found is None:
        raise NotAuthorized("The token is not valid, or not valid any more.", token_given=True)
    return found


def _bearer() -> str:
    """Return what the header Authorization carries; a token anywhere else counts for nothing."""
    given = request.headers.getlist("Authorization")
    scheme, _, token = given[0].partition(" ") if given else ("", "", "")
    if len(given) != 1 or scheme.lower() != "bearer" or not token.strip():
        raise NotAuthorized("This needs a token.")
    return token.strip()


async def _holder(token: str, service: Service) -> Caller | None:
    known = await use_token(service.database, token)
    return Caller(name=f"token {known.id}", scopes=known.scopes) if known else None


async def _signed_in(tokens: AccessTokens, token: str, service: Service) -> Caller | None:
    """Return the user, who must still be there, and may do no more than the token says and the user still may."""
    user_id, scopes = tokens.read(token)
    user = await select_user_by_id(service.database, user_id)
    if user is None:
        return None
    allowed = Caller(name=user.name, scopes=user.scopes)
    return Caller(name=user.name, scopes=frozenset(scope for scope in scopes if allowed.may(scope)))


def _digest(secret: bytes) -> bytes:
    return hmac.digest(b"lockstep", secret, "sha256")

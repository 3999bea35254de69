"""`POST /auth/token`: a user's name and password for an access token, by OAuth 2.0's password grant (RFC 6749, 4.3)."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import parse_qsl

from quart import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException

import telemetry
from access import SCOPES, Caller, Scope, User
from errors import GrantRefused, LockstepError, TooManyAttempts
from store.access import (
    address_slot,
    count_attempt,
    forgive_attempt,
    name_slot,
    select_user,
    update_password_hash,
)
from web.answers import answer, status_of
from web.auth import Keys
from web.passwords import Passwords
from web.service import current_service

FORM = "application/x-www-form-urlencoded"
MOST_FIELDS = 20
IPV6_SITE_BITS = 64
"""Whoever has one address of IPv6 has as many as a prefix of this length holds."""

log = telemetry.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class SignInRules:
    """How passwords are hashed, and how often one may be tried."""

    passwords: Passwords = field(default_factory=Passwords)
    attempts_per_name: int = 10
    attempts_per_address: int = 30
    window: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """What the form says."""

    username: str
    password: str = field(repr=False)
    scopes: frozenset[Scope]
    """Empty for all that the user has."""


def sign_in_blueprint(keys: Keys | None, rules: SignInRules) -> Blueprint:
    """Return the blueprint that signs users in; without keys it says that nobody needs to."""
    blueprint = Blueprint("sign_in", __name__, url_prefix="/auth")

    @blueprint.post("/token")
    async def issue_token() -> Response:
        """Grant an access token, or refuse in the words of RFC 6749, 5.2."""
        if keys is None:
            raise GrantRefused("invalid_request", "No SECRET_KEY is set, so nothing here needs a token.")
        asked = read_request(g.body)
        user = await sign_in(asked, keys.slots, rules)
        granted = grant(user, asked.scopes)
        return answer(
            {
                "access_token": keys.tokens.issue(user, granted),
                "token_type": "Bearer",
                "expires_in": keys.tokens.lifetime_seconds,
                "scope": " ".join(sorted(granted)),
            },
            Pragma="no-cache",
        )

    @blueprint.errorhandler(LockstepError)
    async def refused(error: LockstepError) -> Response:
        return refusal(error)

    @blueprint.errorhandler(HTTPException)
    async def not_taken(error: HTTPException) -> Response:
        status = error.code or HTTPStatus.BAD_REQUEST
        return answer({"error": "invalid_request", "error_description": _ascii(error.description or "")}, status)

    return blueprint


def refusal(error: LockstepError) -> Response:
    """Return an error in the shape of RFC 6749, 5.2; what has no word there is only unavailable for now."""
    if isinstance(error, GrantRefused):
        status, word = HTTPStatus.BAD_REQUEST, error.code  # one of the words of RFC 6749
    else:
        status = status_of(error)
        passing = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        word = "temporarily_unavailable" if passing else "invalid_request"
    response = answer({"error": word, "error_description": _ascii(telemetry.redact(error.cause))}, status)
    response.headers["Pragma"] = "no-cache"
    if isinstance(error, TooManyAttempts):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    return response


def read_request(body: bytes) -> TokenRequest:
    """Return what the form says; raise GrantRefused where it is not as RFC 6749 wants it."""
    if request.args:
        raise GrantRefused("invalid_request", "Nothing belongs into the URL; send it all as a form.")
    if request.mimetype != FORM:
        raise GrantRefused("invalid_request", f"Send the form as {FORM}.")
    form = _fields(body)
    if "grant_type" not in form:
        raise GrantRefused("invalid_request", "The field grant_type is missing.")
    if form["grant_type"] != "password":
        raise GrantRefused("unsupported_grant_type", "The field grant_type must be password.")
    missing = [name for name in ("username", "password") if not form.get(name)]
    if missing:
        raise GrantRefused("invalid_request", f"The field {missing[0]} is missing.")
    words = frozenset(form.get("scope", "").split())
    if not words <= frozenset(SCOPES):
        raise GrantRefused("invalid_scope", f"The scopes are {', '.join(SCOPES)}.")
    return TokenRequest(
        username=form["username"].lower(),
        password=form["password"],
        scopes=frozenset(scope for scope in SCOPES if scope in words),
    )


def _fields(body: bytes) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError as exc:
        raise GrantRefused("invalid_request", "The form is malformed.") from exc
    form = dict(pairs)
    if len(form) != len(pairs):
        raise GrantRefused("invalid_request", "A field is given twice.")
    return form


async def sign_in(asked: TokenRequest, slots_key: bytes, rules: SignInRules) -> User:
    """Return the user whose name and password these are; a wrong name and a wrong password look and last the same."""
    database, place = current_service().database, place_of(_address())
    address, name = address_slot(place, key=slots_key), name_slot(asked.username, key=slots_key)
    limits = {address: rules.attempts_per_address, name: rules.attempts_per_name}
    await count_attempt(database, slots=limits, window=rules.window)
    # PostgreSQL takes no U+0000, and no user has such a name.
    user = None if "\0" in asked.username else await select_user(database, asked.username)
    if not await rules.passwords.match(user.password_hash if user else None, asked.password) or user is None:
        # A name that nobody has may be a password typed into the wrong field.
        log.warning(telemetry.SIGN_IN_REFUSED, address=place, user=user.name if user else None)
        raise GrantRefused("invalid_grant", "The user name or the password is wrong.")
    await forgive_attempt(database, address=address, name=name)
    if rules.passwords.are_outdated(user.password_hash):
        renewed = await rules.passwords.hash(asked.password)
        await update_password_hash(database, user=user.id, old=user.password_hash, new=renewed)
    log.info(telemetry.SIGNED_IN, user=user.name, address=place)
    return user


def grant(user: User, asked: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes of the token: those asked for, or all that the user has; GrantRefused if it is too much."""
    may = Caller(name=user.name, scopes=user.scopes).may
    if not all(may(scope) for scope in asked):
        raise GrantRefused("invalid_scope", f"The user has the scopes {', '.join(sorted(user.scopes))}.")
    return asked or user.scopes


def _address() -> str:
    """Return who is at the other end of the connection; headers can say anything."""
    client = request.scope.get("client") if request.scope else None
    return str(client[0]) if client else ""


def place_of(address: str) -> str:
    """Return what is counted as one address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_SITE_BITS), strict=False))
    return str(parsed)


def _ascii(text: str) -> str:
    """Return `text` in the characters that RFC 6749 allows in an error_description."""
    return "".join(char if " " <= char <= "~" and char not in '"\\' else "'" for char in text)

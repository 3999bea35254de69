"""Access tokens: signed JSON web tokens with a short life, in the profile of RFC 9068 as far as it applies."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from access import Scope, User, known_scopes
from errors import NotAuthorized

ALGORITHM = "HS256"
TYPE = "at+jwt"
ISSUER = AUDIENCE = "lockstep"
KEY_BYTES = 32
CLOCK_LEEWAY_SECONDS = 5
"""By how much the clocks of replicas may differ."""


def derive_key(secret_key: str, purpose: str) -> bytes:
    """Return a key for one purpose alone, from which neither the secret key nor that of another purpose follows."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=f"lockstep {purpose}".encode()).derive(
        secret_key.encode()
    )


class AccessTokens:
    """Issues access tokens, and reads those that it, or another replica with the same secret key, has issued."""

    def __init__(self, secret_key: str, *, lifetime_seconds: int) -> None:
        self.lifetime_seconds = lifetime_seconds
        self._key = OctKey.import_key(derive_key(secret_key, "access tokens"))
        self._claims = jwt.JWTClaimsRegistry(
            leeway=CLOCK_LEEWAY_SECONDS,
            iss={"essential": True, "value": ISSUER},
            aud={"essential": True, "value": AUDIENCE},
            sub={"essential": True},
            scope={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            jti={"essential": True},
            typ={"essential": True, "value": TYPE},  # from the header: a token made for something else is refused
        )

    def issue(self, user: User, scopes: Iterable[Scope]) -> str:
        """Return a token with which `user` may do what `scopes` say."""
        issued_at = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user.id),
            "scope": " ".join(sorted(scopes)),
            "iat": issued_at,
            "exp": issued_at + self.lifetime_seconds,
            "jti": secrets.token_urlsafe(16),
        }
        return jwt.encode({"alg": ALGORITHM, "typ": TYPE}, claims, self._key, algorithms=[ALGORITHM])

    def read(self, token: str) -> tuple[int, frozenset[Scope]]:
        """Return the user's id and the scopes; raise NotAuthorized unless the token is ours, and valid now."""
        try:
            decoded = jwt.decode(token, self._key, algorithms=[ALGORITHM])
            self._claims.validate(decoded.claims | {"typ": decoded.header.get("typ")})
            return int(decoded.claims["sub"]), known_scopes(decoded.claims["scope"].split())
        except (JoseError, ValueError, TypeError, AttributeError) as exc:
            raise NotAuthorized("The token is not valid, or not valid any more.", token_given=True) from exc

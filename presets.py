"""Sources that are known by name: what an entry of the sources file that names a preset starts from.

Everything is in the terms of the sources file, so whatever an entry says itself wins, and `${NAME}` stands for a
variable of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

BINANCE = "binance"

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        BINANCE: MappingProxyType(
            {
                "url": "https://api.binance.com/api/v3/ticker/price",
                "key": "symbol",
                # The prices come as text, with eight decimals, and are to be numbers with just those.
                "types": {"price": "numeric"},
                "headers": {"X-MBX-APIKEY": "${BINANCE_API_KEY}"},
                # All prices weigh 4 of the 6,000 that are allowed in a minute, to all callers from one address.
                "weight": {"header": "X-MBX-USED-WEIGHT-1M", "limit": 6000, "window_seconds": 60, "stop_share": 0.8},
                # Who is refused tells the others at once instead of waiting in its run; the next one is soon.
                "max_retry_after": "0s",
                "read_timeout": "10s",
                "total_timeout": "30s",
                "every": "5s",
            }
        )
    }
)

PING_PATHS: Mapping[str, str] = MappingProxyType({BINANCE: "/api/v3/ping"})
"""By preset, where the source says that it is there, at the origin of its URL."""

OPTIONAL_VARIABLES: Mapping[str, frozenset[str]] = MappingProxyType({BINANCE: frozenset({"BINANCE_API_KEY"})})
"""By preset, the variables that need not be set; headers that name one are left out then."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def preset_entry(name: str, environment: Mapping[str, str]) -> dict[str, object]:
    """Return what an entry with a preset starts from, without the headers whose optional variable is not set.

    Raises KeyError for a name that is unknown.
    """
    missing = {variable for variable in OPTIONAL_VARIABLES.get(name, ()) if not environment.get(variable)}
    entry = dict(PRESETS[name])
    headers = entry.get("headers")
    if isinstance(headers, Mapping):
        entry["headers"] = {
            header: value for header, value in headers.items() if not missing & set(_VARIABLE.findall(str(value)))
        }
    return entry

"""Which of the rows an answer holds, asked and told in PostgREST's headers.

A page goes on from a row, not from a number, so where it stands among all rows is known where it is the first one, or
where the rows are counted.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

from quart import Response, request

from errors import BadRequest
from store.reading import Extent, Page

ROW_RANGE = re.compile(r"\s*[0-9]*-[0-9]*\s*")
"""What PostgREST takes for a range of rows; a range of bytes names its unit, and HTTP has us leave it aside."""
COUNT = "count=exact"


def refuse_row_range() -> None:
    """Raise BadRequest where rows are asked for by their numbers: other ones would be taken for them."""
    if ROW_RANGE.fullmatch(request.headers.get("Range", "")):
        raise BadRequest(
            "The header Range asks for rows by their numbers, which change as rows come and go.",
            remedy="Ask with limit=, and follow the header Link of each page to the next one.",
        )


def wants_count() -> bool:
    """Tell whether all rows are to be counted; other preferences are left aside, as RFC 7240 has it."""
    wishes = ",".join(request.headers.getlist("Prefer")).split(",")
    return any(wish.partition(";")[0].replace(" ", "").replace('"', "").lower() == COUNT for wish in wishes)


def tell_range(response: Response, page: Page, extent: Extent | None, *, is_first: bool) -> None:
    """Say which rows of how many these are, and where the next ones are."""
    shown, total = len(page.rows), "*" if extent is None else str(extent.total)
    if extent is not None:
        response.headers["Preference-Applied"] = COUNT
        response.status_code = 206 if shown < extent.total else response.status_code
    if extent is not None or is_first:
        start = extent.before if extent is not None else 0
        numbers = f"{start}-{start + shown - 1}" if shown else "*"
        response.headers["Content-Range"] = f"{numbers}/{total}"
    if page.next is not None:
        parameters = [(name, value) for name, value in request.args.items(multi=True) if name != "after"]
        # Without a path it is right behind any proxy.
        response.headers["Link"] = f'<?{urlencode([*parameters, ("after", page.next)])}>; rel="next"'

"""Pages of lists, and the opaque cursors that lead from one to the next."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, Field, create_model

from credit_service.doors.http.answers import Meta, Unset, meta, text
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.problems import Problem, of_faults
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Time
from credit_service.messages.shapes import encode
from credit_service.settings import Settings

T = TypeVar("T")
Place = tuple[int, ...]
"""A position in a list: numbers from 0 to 2^63-1."""
_WHOLE = re.compile("-?[0-9]+")


def _whole(value: Any) -> Any:
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise ValueError("Must be a whole number.")
    return value


WHOLE = BeforeValidator(_whole)
"""For whole numbers in a query: digits alone, where pydantic would also take 1_0 and 1.0."""
_Entries = Annotated[
    int, Field(ge=1, json_schema_extra={"maximum": Settings.model_fields["page_max_limit"].default}), WHOLE
]
Limit = Annotated[_Entries | None, Query(description="Entries of a page, 50 by default.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
Since = Annotated[Time | None, Query(description="From this instant on (RFC 3339).")]
Until = Annotated[Time | None, Query(description="Before this instant (RFC 3339).")]


class Pagination(BaseModel):
    """Where a page is in its list. `page` and `total` only if pages are numbered."""

    limit: Annotated[int, Field(examples=[50])]
    next_cursor: Annotated[str | None, Unset]
    has_next: bool
    has_previous: bool
    page: Annotated[int | None, Unset] = None
    total: Annotated[int | None, Unset] = None


class Links(BaseModel):
    """Links to a page and to those beside it."""

    self: Annotated[str, text("/api/v1/…?limit=50")]
    next: Annotated[str | None, Unset]
    prev: Annotated[str | None, Unset]


@cache
def page_of(shape: Any, name: str | None = None) -> type[BaseModel]:
    """The model of a page. `name` is that of an entry, if its shape is named otherwise."""
    fields: Any = {"data": list[shape], "pagination": Pagination, "links": Links, "meta": Meta}
    name = name or shape.__name__.removesuffix("Shape")
    return create_model(f"{name}Page", __doc__="A page of a list.", **fields)


class Pager:
    """Makes one page of a list. `bound` names the list and its filters; a cursor of another one is refused.

    Raises Problem if the limit is beyond the largest.
    """

    def __init__(self, call: Call, limit: int | None, **bound: Any) -> None:
        most = call.limits.page
        if limit is not None and limit > most:
            raise of_faults([Fault("/query/limit", "out_of_range", f"A page has {most} entries at most.")])
        self.limit = min(50, most) if limit is None else limit
        self._call = call
        self._bound = bound

    def place(self, cursor: str | None, parts: int = 1) -> Place | None:
        """The place in a cursor, None without one. Raises Problem if it was not made for this list."""
        return None if cursor is None else place_in(cursor, parts, **self._bound)

    def page(
        self,
        now: int,
        found: Sequence[T],
        shape: Callable[[T], Any],
        place: Callable[[T], Place],
        *,
        has_previous: bool,
        number: int | None = None,
        total: int | None = None,
        end: Place | None = None,
    ) -> Answer:
        """The page that these entries make; one more entry means that there is a next page.

        `place` is where a list goes on after an entry. With a `number` the links go by it, else by cursor. `end`: where
        the list goes on in any case, also if there is no more yet.
        """
        shown = found[: self.limit]
        has_next = len(found) > self.limit
        cursor = None
        if has_next or end is not None:
            cursor = cursor_of(place(shown[-1]) if end is None else end, **self._bound)
        pagination: dict[str, Any] = {
            "limit": self.limit,
            "next_cursor": cursor,
            "has_next": has_next,
            "has_previous": has_previous,
        }
        if number is None:
            following = self._link(cursor=str(cursor)) if has_next else None
            previous = None
        else:
            pagination |= {"page": number, "total": total}
            following = self._link(page=str(number + 1)) if has_next else None
            previous = self._link(page=str(number - 1)) if number > 1 else None
        links = {"self": self._link(), "next": following, "prev": previous}
        data = [shape(one) for one in shown]
        told = {"data": data, "pagination": pagination, "links": links, "meta": meta(self._call, now)}
        return Answer(200, encode(told))

    def slice(self, now: int, whole: Sequence[T], shape: Callable[[T], Any], cursor: str | None) -> Answer:
        """The page of a list that is short enough to be read whole."""
        (start,) = self.place(cursor) or (0,)
        found, following = whole[start : start + self.limit + 1], (start + self.limit,)
        return self.page(now, found, shape, lambda _: following, has_previous=start > 0)

    def _link(self, **changed: str) -> str:
        """The path and query of the call, changed. `changed` needs no escapes."""
        query = self._call.query.decode("latin-1")
        if changed:
            kept = [one for one in query.split("&") if one and unquote(one.partition("=")[0]) not in changed]
            query = "&".join([*kept, *[f"{name}={value}" for name, value in changed.items()]])
        return f"{self._call.path}?{query}" if query else self._call.path


def cursor_of(place: Place, **bound: Any) -> str:
    """An opaque cursor: a place, bound to a list and its filters."""
    raw = _binding(bound) + b"".join([part.to_bytes(8, "big") for part in place])
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def place_in(cursor: str, parts: int, **bound: Any) -> Place:
    """The place in a cursor, of so many numbers. Raises Problem if it was not made for this list."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
    except ValueError:
        raw = b""
    place = tuple([int.from_bytes(raw[start : start + 8], "big") for start in range(8, len(raw), 8)])
    if raw[:8] != _binding(bound) or len(raw) != 8 + 8 * parts or any(part >> 63 for part in place):
        detail = "This cursor was not made for this list. Start again without it."
        raise Problem("cursor_invalid", detail, errors=[Fault("/query/cursor", "malformed", detail)])
    return place


def _binding(bound: dict[str, Any]) -> bytes:
    return blake2b(json.dumps(bound, sort_keys=True, default=str).encode(), digest_size=8).digest()

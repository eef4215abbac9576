"""The files that `replay` reads: an order stream as CSV, or CloudEvents as JSON lines. Either may be gzipped.

An order stream has one row for each order or refund; each row becomes the event that the shop would have sent. A line
that cannot be used becomes an entry with its result, so that it stops no other line.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from credit_service.ledger.policy import Policy
from credit_service.ledger.pricing import order_price
from credit_service.messages import envelope, strict_json
from credit_service.messages.content import Limits
from credit_service.messages.faults import Invalid
from credit_service.messages.fields import money_micros
from credit_service.messages.inbound import Translated
from credit_service.messages.patterns import CURRENCY
from credit_service.messages.shapes import encode

ACTOR: Final = "replay"
COLUMNS: Final = ("invoice", "customer_id", "timestamp", "total", "kind")
LINK_COLUMNS: Final = ("refund_invoice", "order_invoice", "order_total")
LINK_FILES: Final = (
    "refund_links.csv",
    "refund_links.csv.gz",
    "online_retail_refund_links.csv",
    "online_retail_refund_links.csv.gz",
)
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


class Unreadable(Exception):
    """A file cannot be read, or is of another kind; the message is one sentence for a person."""


class Result(NamedTuple):
    """The outcome of a line: posted, replayed, parked, refused (with a code and a reason) or skipped."""

    outcome: str
    code: str | None = None
    reason: str = ""


class Entry(NamedTuple):
    """A line: its event as JSON and as commands, or its result if that is known without posting."""

    number: int
    event: bytes
    translated: Sequence[Translated]
    result: Result | None = None


class Link(NamedTuple):
    """The order that a refund belongs to."""

    order_id: str
    order_total: str


Links = Mapping[str, Link]
"""By the invoice of the refund."""


class Reading(NamedTuple):
    """How strictly lines are read. The widest: for a service, which judges them by its own settings."""

    limits: Limits = Limits(255, 65_536)
    json_max_depth: int = 200


class Source:
    """A file to replay, open at its beginning.

    `links`: the file that names the orders of refunds. `currency`: of rows that name none. Raises Unreadable.
    """

    def __init__(self, path: Path, links: Path | None, currency: str | None, reading: Reading) -> None:
        self._file, self._lines = _open(path)
        self._reading = reading
        self.size = path.stat().st_size
        """Bytes of the file; 0 where they are unknown, as of a pipe."""
        try:
            self._stream: _OrderStream | None = None
            if currency is not None and not re.fullmatch(CURRENCY, currency):
                raise Unreadable("--currency: a currency has three capital letters, like GBP.")
            first = next(self._lines, None)
            if first is None:
                return
            if first[1].startswith(b"{"):
                if links is not None or currency is not None:
                    option = "--links" if currency is None else "--currency"
                    raise Unreadable(f"{path} holds events, so {option} is of no use.")
                self._lines = chain([first], self._lines)
            else:
                self.links = links or next(filter(Path.is_file, map(path.with_name, LINK_FILES)), None)
                self._stream = _OrderStream(path, first[1], currency, {} if self.links is None else _links(self.links))
        except BaseException:
            self.close()
            raise

    links: Path | None = None
    """The file that names the orders of refunds."""

    @property
    def is_order_stream(self) -> bool:
        """Whether the file has rows of orders, which need prices."""
        return self._stream is not None

    @property
    def position(self) -> int:
        """Bytes of the file that were read."""
        return self._file.tell() if self.size else 0

    def close(self) -> None:
        self._file.close()

    def entries(self, prices: Policy) -> Iterator[Entry]:
        """All lines but empty ones. `prices` decide a refund of an unknown order. Raises Unreadable at a broken end."""
        for number, line in self._lines:
            if self._stream is None:
                yield self._read(number, line)
                continue
            event = self._stream.event(line, prices)
            yield Entry(number, b"", (), event) if isinstance(event, Result) else self._read(number, event)

    def _read(self, number: int, event: bytes) -> Entry:
        """Read an event as every door does."""
        limits, depth = self._reading
        try:
            read = envelope.read_fast(event, ACTOR, None, limits)
            if read is None:
                read = envelope.read(strict_json.parse(event, depth), ACTOR, None, limits)
        except Invalid as error:
            return Entry(number, event, (), refused(error))
        return Entry(number, event, read.commands, None if read.invalid is None else refused(read.invalid))


def refused(invalid: Invalid) -> Result:
    """The result of an event that cannot be understood."""
    code = "event_type_unknown" if isinstance(invalid, envelope.UnknownType) else "validation_failed"
    return Result("refused", code, str(invalid))


class _OrderStream:
    """Turns the rows of an order stream into events."""

    def __init__(self, path: Path, header: bytes, currency: str | None, links: Links) -> None:
        self._row = _Rows(path, header, COLUMNS, "currency")
        self._currency = currency
        self._links = links

    def event(self, line: bytes, prices: Policy) -> bytes | Result:
        """The event of a row, or the result of a row that has none."""
        row = self._row(line)
        if isinstance(row, str):
            return Result("refused", "validation_failed", row)
        invoice, customer, timestamp, total, kind, currency = row
        if not invoice or not customer:
            missing = "customer_id" if invoice else "invoice"
            return Result("refused", "validation_failed", f"{missing} is missing.")
        data: dict[str, Any] = {"merchant_id": _merchant(customer)}
        money = {"currency": currency or self._currency} if currency or self._currency else {}
        if kind == "paid":
            data |= {"order_id": invoice, "total": total, **money}
        elif kind == "refund" and (link := self._links.get(invoice)) is not None:
            data |= {"refund_id": invoice, "order_id": link.order_id, "order_total": link.order_total}
            data |= {"refund_amount": total, **money}
        elif kind == "refund":
            # Its order is unknown, so it gives back what an order of its total costs now.
            try:
                credits = order_price(prices, money_micros(total))
            except ValueError as error:
                return Result("refused", "validation_failed", f"total: {error}")
            if not credits:
                return Result("skipped")
            data |= {"refund_id": invoice, "credits": credits}
        else:
            return Result("refused", "validation_failed", f"kind is {kind!r}, neither paid nor refund.")
        return encode(
            {
                "specversion": "1.0",
                "id": invoice,
                "source": "credit-service/replay",
                "type": f"evt.shopify.webhook.order_{'paid' if kind == 'paid' else 'refunded'}",
                "time": timestamp,
                "data": data,
            }
        )


@lru_cache(maxsize=100_000)
def _merchant(customer: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"customer:{customer}"))


class _Rows:
    """Reads CSV rows, one line each: the `wanted` columns, and an `optional` one, which is empty where it is absent."""

    def __init__(self, path: Path, header: bytes, wanted: Sequence[str], optional: str | None = None) -> None:
        names = _fields(header)
        if isinstance(names, str):
            raise Unreadable(f"{path} is neither CSV with a header line nor JSON lines: {names}")
        names = [name.strip() for name in names]
        if missing := [name for name in wanted if name not in names]:
            raise Unreadable(
                f"{path} is neither JSON lines nor a CSV with the columns {', '.join(wanted)}: "
                f"{', '.join(missing)} not found."
            )
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise Unreadable(f"{path} has two columns named {twice}.")
        self._width = len(names)
        self._places = [names.index(name) for name in wanted]
        self._optional = [] if optional is None else [names.index(optional) if optional in names else None]

    def __call__(self, line: bytes) -> list[str] | str:
        """The fields of a row, or what is wrong with it."""
        fields = _fields(line)
        if isinstance(fields, str):
            return fields
        if len(fields) != self._width:
            return f"The row has {len(fields)} fields, the header {self._width}."
        optional = ["" if place is None else fields[place] for place in self._optional]
        return [*[fields[place] for place in self._places], *optional]


def _fields(line: bytes) -> list[str] | str:
    try:
        return next(csv.reader([line.decode()], strict=True))
    except UnicodeDecodeError as error:
        return f"The row is not UTF-8: byte {error.start} is not valid."
    except csv.Error as error:
        return f"The row is not CSV: {error}."


def _links(path: Path) -> Links:
    file, lines = _open(path)
    with file:
        _, header = next(lines, (1, b""))
        rows = _Rows(path, header, LINK_COLUMNS)
        found: dict[str, Link] = {}
        for number, line in lines:
            row = rows(line)
            if isinstance(row, str):
                raise Unreadable(f"{path}, line {number}: {row}")
            refund, link = row[0], Link(row[1], row[2])
            if found.setdefault(refund, link) != link:
                raise Unreadable(f"{path}, line {number}: the refund {refund} has another order before.")
        return found


def _open(path: Path) -> tuple[BufferedReader, Iterator[tuple[int, bytes]]]:
    """The file itself, for its position and to close it, and its numbered lines without line ends."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.") from None
    try:
        start = file.peek(len(_GZIP))[: len(_GZIP)]  # a pipe cannot be wound back
    except OSError as error:
        file.close()
        raise Unreadable(f"{path} cannot be read: {error.strerror}.") from None
    return file, _numbered(path, gzip.GzipFile(fileobj=file) if start == _GZIP else file)


def _numbered(path: Path, lines: BufferedReader | gzip.GzipFile) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            # A byte order mark may begin the file, and each part of a file that was put together.
            if stripped := line.removeprefix(_BOM).strip(b"\r\n\t "):
                yield number, stripped
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path} cannot be read after line {number}: {error}.") from None

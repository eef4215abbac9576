"""What `replay` reads: an order stream as CSV, or CloudEvents as JSON lines. Either may be gzipped.

An order stream has one row per order or refund; each row becomes the event that the shop would have sent. A line that
means nothing is an entry like any other, decided here, so that it stops none of the rest.
"""

import csv
import gzip
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
from credit_service.messages.faults import Invalid
from credit_service.messages.fields import money_micros
from credit_service.messages.inbound import Translated
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
_CURRENCY: Final = "GBP"
_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"


class Unreadable(Exception):
    """A file that cannot be read, or is not what it should be; one sentence for a person."""


class Result(NamedTuple):
    """What became of a line: posted, replayed, parked, refused (with a code and a reason) or skipped."""

    outcome: str
    code: str | None = None
    reason: str = ""


class Entry(NamedTuple):
    """A line: the event it is as JSON, and what that means; or what became of it already."""

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


class Source:
    """A file to replay, open from the beginning. Raises Unreadable when it is not one."""

    def __init__(self, path: Path, policy: Policy, links: Path | None, json_max_depth: int) -> None:
        self._file, self._lines = _open(path)
        self._depth = json_max_depth
        self.size = path.stat().st_size
        """Bytes of the file; 0 where that cannot be known, as of a pipe."""
        try:
            self._stream: _OrderStream | None = None
            first = next(self._lines, None)
            if first is None:
                return
            if first[1].startswith(b"{"):
                if links is not None:
                    raise Unreadable(f"{path} holds events, which name their orders themselves: --links is of no use.")
                self._lines = chain([first], self._lines)
            else:
                self.links = links or next(filter(Path.is_file, map(path.with_name, LINK_FILES)), None)
                self._stream = _OrderStream(path, first[1], policy, {} if self.links is None else _links(self.links))
        except BaseException:
            self.close()
            raise

    links: Path | None = None
    """Where the links of the refunds were found."""

    @property
    def position(self) -> int:
        """How many bytes of the file were read."""
        return self._file.tell() if self.size else 0

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def entries(self) -> Iterator[Entry]:
        """All lines, but for empty ones. Raises Unreadable where the file breaks off."""
        for number, line in self._lines:
            if self._stream is None:
                yield self._read(number, line)
                continue
            event = self._stream.event(line)
            yield Entry(number, b"", (), event) if isinstance(event, Result) else self._read(number, event)

    def _read(self, number: int, event: bytes) -> Entry:
        """An event, read as every door reads one."""
        try:
            read = envelope.read_fast(event, ACTOR, None)
            if read is None:
                read = envelope.read(strict_json.parse(event, self._depth), ACTOR, None)
        except Invalid as error:
            return Entry(number, event, (), refused(error))
        return Entry(number, event, read.commands, None if read.invalid is None else refused(read.invalid))


def refused(invalid: Invalid) -> Result:
    """What becomes of an event that cannot be understood."""
    code = "event_type_unknown" if isinstance(invalid, envelope.UnknownType) else "validation_failed"
    return Result("refused", code, str(invalid))


class _OrderStream:
    """Turns the rows of an order stream into events."""

    def __init__(self, path: Path, header: bytes, policy: Policy, links: Links) -> None:
        self._row = _Rows(path, header, COLUMNS)
        self._policy = policy
        self._links = links

    def event(self, line: bytes) -> bytes | Result:
        """The event that a row is; or what became of it, where it is none."""
        row = self._row(line)
        if isinstance(row, str):
            return Result("refused", "validation_failed", row)
        invoice, customer, timestamp, total, kind = row
        if not invoice or not customer:
            missing = "customer_id" if invoice else "invoice"
            return Result("refused", "validation_failed", f"{missing} is missing.")
        data: dict[str, Any] = {"merchant_id": _merchant(customer)}
        if kind == "paid":
            data |= {"order_id": invoice, "total": total, "currency": _CURRENCY}
        elif kind == "refund":
            data["refund_id"] = invoice
            link = self._links.get(invoice)
            if link is not None:
                order_id, order_total = link
                data |= {"order_id": order_id, "refund_amount": total, "order_total": order_total}
                data["currency"] = _CURRENCY
            else:
                # Nobody knows its order, so it gives back what an order of its total would cost now.
                try:
                    credits = order_price(self._policy, money_micros(total))
                except ValueError as error:
                    return Result("refused", "validation_failed", f"total: {error}")
                if not credits:
                    return Result("skipped")
                data["credits"] = credits
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
    """Reads the wanted columns of CSV rows, each from its own line."""

    def __init__(self, path: Path, header: bytes, wanted: Sequence[str]) -> None:
        names = _fields(header.removeprefix(_BOM))
        if isinstance(names, str):
            raise Unreadable(f"{path} is neither CSV with a header line nor JSON lines: {names}")
        missing = [name for name in wanted if name not in names]
        if missing:
            raise Unreadable(
                f"{path} is neither JSON lines nor a CSV with the columns {', '.join(wanted)}: "
                f"{', '.join(missing)} not found."
            )
        self._width = len(names)
        self._places = [names.index(name) for name in wanted]

    def __call__(self, line: bytes) -> list[str] | str:
        """The wanted fields of a row, or what is wrong with it."""
        fields = _fields(line)
        if isinstance(fields, str):
            return fields
        if len(fields) != self._width:
            return f"The row has {len(fields)} fields, the header {self._width}."
        return [fields[place] for place in self._places]


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
            found[row[0]] = Link(row[1], row[2])
        return found


def _open(path: Path) -> tuple[BufferedReader, Iterator[tuple[int, bytes]]]:
    """The file itself, to ask how far it was read and to close it, and its numbered lines without their ends."""
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
            if stripped := line.strip(b"\r\n\t "):
                yield number, stripped
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path} cannot be read after line {number}: {error}.") from None

"""How a subject asks an engine: questions that every engine answers, as statements built from the one schema.

A read is a generator that yields questions and receives their rows. So subjects know no engine, and engines know no
subject. The statements of a subject stand beside it; how rows are written and looked up in bulk is each engine's own.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import BigInteger, ClauseElement, Dialect, Table, bindparam, literal_column
from sqlalchemy.sql.compiler import SQLCompiler

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")
Row = tuple[Any, ...]


class Ask(NamedTuple):
    """A question: a statement, and the values of its parameters."""

    statement: ClauseElement
    values: Mapping[str, Any] = {}


class Find(NamedTuple):
    """A question: the rows of a table at these places (values of `columns`), each named once; an index leads there."""

    table: Table
    columns: tuple[str, ...]
    places: Collection[Sequence[Any]]
    condition: str = "true"


Question = Ask | Find
Read = Generator[Question, list[Row], T]
"""Yields questions, receives their rows, returns the answer. An engine may start it again from the beginning."""


def asking(question: Question) -> Callable[[], Read[list[Row]]]:
    """A read of one question, which returns its rows."""

    def read() -> Read[list[Row]]:
        return (yield question)

    return read


def answered(read: Generator[Q, R, T], answer: Callable[[Q], R]) -> T:
    """Run a generator of questions to its end, with a function that answers each."""
    try:
        question = next(read)
        while True:
            question = read.send(answer(question))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned


class Statement(NamedTuple):
    """A compiled statement, with the names of its parameters in their order and the values of its constants."""

    sql: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        """The parameters in their order; values that the statement does not use are left out."""
        return [values[name] if name in values else self.constants[name] for name in self.names]


def compiled(statement: ClauseElement, dialect: Dialect) -> Statement:
    """A statement as an engine's driver takes it."""
    made = statement.compile(dialect=dialect)
    assert isinstance(made, SQLCompiler)
    return Statement(str(made), tuple(made.positiontup or ()), dict(made.params))


def value(name: str) -> Any:
    """A parameter whose type its column tells."""
    return bindparam(name)


def number(name: str) -> Any:
    """A parameter that is a whole number, where no column tells its type."""
    return bindparam(name, type_=BigInteger)


ZERO: Final[Any] = literal_column("0")
ONE: Final[Any] = literal_column("1")


def literals(names: Iterable[str]) -> list[Any]:
    """Our own words, such as transaction types, written into a statement: never what a caller sent."""
    return [literal_column(f"'{name}'") for name in sorted(names)]


def asked(query: Any) -> dict[str, Any]:
    """The conditions of a query (a named tuple) that are set."""
    return {name: value for name, value in query._asdict().items() if value is not None and value is not False}

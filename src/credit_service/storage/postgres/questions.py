"""How PostgreSQL answers the questions of reads."""

from collections.abc import Generator
from typing import TypeVar

from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.connections import Connection
from credit_service.storage.questions import Find, Question, Row

T = TypeVar("T")
Q = TypeVar("Q", bound=Question)


async def answer(connection: Connection, question: Question) -> list[Row]:
    """The rows of a question."""
    if isinstance(question, Find):
        table, columns, places, condition = question
        if not places:
            return []
        arrays = sql.by_column(list(places))
        return list(map(tuple, await connection.fetch(sql.rows_at(table, columns, condition), *arrays)))
    made = sql.compiled(question.statement)
    # PostgreSQL refuses a NUL, also in a text to look for. \1 finds nothing either: no text here contains it.
    values = [one.replace("\0", "\1") if isinstance(one, str) else one for one in made.bound(question.values)]
    return list(map(tuple, await connection.fetch(made.sql, *values)))


async def answered(connection: Connection, steps: Generator[Q, list[Row], T]) -> T:
    """Run a generator of questions to its end."""
    try:
        question = next(steps)
        while True:
            question = steps.send(await answer(connection, question))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned

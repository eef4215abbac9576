"""Answers: their envelope, and the fields and shapes that many of them share."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, create_model

from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.problems import CODES
from credit_service.messages.fields import format_time
from credit_service.messages.shapes import encode


def text(example: str, form: str | None = None) -> Any:
    """A text in an answer: its example, and its format."""
    return Field(examples=[example], json_schema_extra={} if form is None else {"format": form})


MERCHANT: Final = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
"""The merchant of every example."""
MerchantText = Annotated[str, text(MERCHANT)]
AccountText = Annotated[str, text("a7800de5-8bd6-8a69-9000-000000000000", "uuid")]
TransactionText = Annotated[str, text("a7800de5-8bd6-8a69-9100-000000000002", "uuid")]
GrantText = Annotated[str, text("a7800de5-8bd6-8a69-9200-000000000001", "uuid")]
Instant = Annotated[str, text("2026-11-22T10:45:00.000000Z", "date-time")]
RequestId = Annotated[str, text("77f0a1b2c3d4e5f60718293a4b5c6d7e")]
Unset = Field(examples=[None])
"""A field that is null in examples, or left out there."""


class FaultShape(BaseModel):
    """One fault of a request."""

    pointer: Annotated[str, text("/amount")]
    code: Annotated[str, text("out_of_range")]
    message: Annotated[str, text("Input should be greater than or equal to 1.")]


class ProblemShape(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]
    request_id: str | None
    errors: list[FaultShape]


class Meta(BaseModel):
    """The ids of the request, and the time of the answer."""

    request_id: RequestId
    correlation_id: RequestId
    timestamp: Instant


@cache
def one(shape: Any, name: str | None = None) -> type[BaseModel]:
    """The model of an answer whose `data` has this shape. `name` is that of the data, if its shape has another one."""
    name = name or shape.__name__.removesuffix("Shape")
    return create_model(f"One{name}", __doc__="An answer with its data.", data=(shape, ...), meta=(Meta, ...))


def answer(call: Call, now: int, data: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Answer:
    """A successful answer: data and meta."""
    return Answer(status, encode({"data": data, "meta": meta(call, now)}), headers)


def meta(call: Call, now: int) -> dict[str, str]:
    return {"request_id": call.request_id, "correlation_id": call.correlation_id, "timestamp": format_time(now)}

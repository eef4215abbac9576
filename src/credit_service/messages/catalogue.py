"""The list of all event types: the source of the schemas, the AsyncAPI document, the page of events, and tests.

`inbound` declares the types that come in, `outbound` those that go out; a new type is one entry there.
"""

from inspect import getdoc
from typing import Any, Final, Literal, NamedTuple

import msgspec

from credit_service.messages import inbound, outbound
from credit_service.messages.fields import Body


class EventType(NamedTuple):
    """An event type: its name, which is also its NATS subject, and its data.

    `meaning`: one sentence, on the effect of an inbound event or the cause of an outbound one. `key`: the natural key
    of the transaction of an inbound event, with the names of its fields in braces.
    """

    name: str
    direction: Literal["in", "out"]
    data: type[Body] | type[outbound.Payload]
    meaning: str
    key: str | None = None

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of its data, without references to other documents."""
        if issubclass(self.data, Body):
            schema = self.data.model_json_schema()
        else:
            (_,), defined = msgspec.json.schema_components([self.data], ref_template="#/$defs/{name}")
            schema = defined.pop(self.data.__name__)
            schema["$defs"] = defined
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": self.name}


def _meaning(data: type) -> str:
    return " ".join((getdoc(data) or "").split())


IN: Final = tuple(
    EventType(name, "in", kind.model, _meaning(kind.model), kind.key) for name, kind in inbound.CATALOGUE.items()
)
OUT: Final = tuple(
    EventType(outbound.PREFIX + name, "out", data, _meaning(data)) for name, data in outbound.PAYLOADS.items()
)
CATALOGUE: Final = (*IN, *OUT)
"""Every event type: first the inbound, then the outbound ones."""

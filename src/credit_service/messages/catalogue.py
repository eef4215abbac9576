"""Every event type, in and out, once: from here come the schemas, the AsyncAPI document, the page of events, and tests.

What comes in is declared in `inbound`, what goes out in `outbound`; a new type is one entry there.
"""

from inspect import getdoc
from typing import Any, Final, Literal, NamedTuple

import msgspec

from credit_service.messages import inbound, outbound
from credit_service.messages.fields import Body


class EventType(NamedTuple):
    """An event type: its name, which over NATS is its subject, and what it is to say.

    `meaning`: in one sentence, what an event that comes in effects, and when one that goes out is told. `key`: the
    natural key of what an event that comes in posts, with the names of its fields in braces.
    """

    name: str
    direction: Literal["in", "out"]
    data: type[Body] | type[outbound.Payload]
    meaning: str
    key: str | None = None

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of its data, by itself."""
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
"""Every event type: those that are understood, then those that are told."""

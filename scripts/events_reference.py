"""Make docs/events.md and a JSON Schema for each event from the catalogue. scripts.pages writes the files.

scripts/events_page.md has the text around the tables of the page.
"""

import json
from pathlib import Path
from textwrap import fill
from typing import Final

from credit_service.messages.catalogue import CATALOGUE, IN, OUT, EventType
from credit_service.messages.outbound import Payload
from scripts.examples import example
from scripts.http_reference import EVENTS

_HERE: Final = Path(__file__).parent
_EXAMPLES: Final = _HERE.parent / "examples"


def page() -> str:
    """Return the text of the page."""
    text = (_HERE / "events_page.md").read_text(encoding="utf-8")
    parts = {
        "in": _incoming(),
        "out": _outgoing(),
        "sections": "\n\n".join(map(_section, OUT)),
        "consume_nats.py": _source("consume_nats.py", "python"),
        "consume_nats.mjs": _source("consume_nats.mjs", "js"),
    }
    for name, part in parts.items():
        text = text.replace(f"{{{{ {name} }}}}", part)
    return text


def schema(kind: EventType) -> str:
    """Return the text of the file with the JSON Schema of an event's `data`."""
    return json.dumps(kind.schema(), indent=2, ensure_ascii=False) + "\n"


SCHEMAS: Final = {f"schemas/{kind.name}.json": kind for kind in CATALOGUE}
"""The event of each schema file, by its path below docs/."""


def _source(name: str, language: str) -> str:
    return f"```{language}\n{(_EXAMPLES / name).read_text(encoding='utf-8')}```"


def _named(kind: EventType) -> str:
    return f"[`{kind.name}`](schemas/{kind.name}.json)"


def _incoming() -> str:
    rows = [f"| {_named(kind)} | {EVENTS[kind.name]} | {kind.meaning} `{kind.key}` |" for kind in IN]
    return "\n".join(["| type | `data` besides `merchant_id` | effect and natural key |", "| --- | --- | --- |", *rows])


def _outgoing() -> str:
    rows = [f"| [`{kind.name}`](#{_anchor(kind)}) | {kind.meaning} |" for kind in OUT]
    return "\n".join(["| type | when |", "| --- | --- |", *rows])


def _anchor(kind: EventType) -> str:
    return kind.name.replace(".", "")


def _section(kind: EventType) -> str:
    """Return the section of one event, with an example."""
    own = [f"`{name}`" for name in kind.schema()["properties"] if name not in Payload.__struct_fields__]
    text = f"{kind.meaning} It adds these fields: {', '.join(own)}." if own else kind.meaning
    shown = json.dumps(example(kind), indent=2)
    schema_link = f"[Its schema](schemas/{kind.name}.json)."
    return "\n\n".join([f"### {kind.name}", fill(f"{text} {schema_link}", 120), f"```json\n{shown}\n```"])

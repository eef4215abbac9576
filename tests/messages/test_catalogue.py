"""The catalogue of events: one entry for each type, in and out, and its documents."""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from credit_service.ledger.commands import Command
from credit_service.messages import inbound
from credit_service.messages.catalogue import CATALOGUE, IN, OUT, EventType
from credit_service.messages.envelope import read
from credit_service.messages.outbound import PAYLOADS, PREFIX
from scripts import asyncapi
from scripts.examples import example

VECTORS = Path(__file__).parent.parent / "vectors"
named = pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.name)


@cache
def document() -> dict[str, Any]:
    """The AsyncAPI document."""
    return asyncapi.document()


def judge(schema: dict[str, Any]) -> Any:
    """A validator for a schema of the document."""
    return jsonschema_rs.validator_for({**schema, "components": document()["components"]}, validate_formats=True)


def test_the_catalogue_has_each_inbound_and_outbound_type_once() -> None:
    assert [kind.name for kind in IN] == list(inbound.CATALOGUE)
    assert [kind.name for kind in OUT] == [PREFIX + name for name in PAYLOADS]
    names = [kind.name for kind in CATALOGUE]
    assert len(names) == len(set(names))


@named
def test_each_type_has_a_sentence_of_meaning(kind: EventType) -> None:
    assert kind.meaning.endswith(".")
    assert "\n" not in kind.meaning
    assert (kind.key is None) == (kind.direction == "out")


@named
def test_each_type_has_an_example_that_fits_its_schema(kind: EventType) -> None:
    jsonschema_rs.validator_for(kind.schema(), validate_formats=True).validate(example(kind)["data"])
    judge(document()["components"]["messages"][kind.name]["payload"]).validate(example(kind))


@pytest.mark.parametrize("kind", IN, ids=lambda kind: kind.name)
def test_inbound_examples_are_valid_and_have_natural_keys(kind: EventType) -> None:
    told = read(example(kind), "key:a", None)
    assert (told.type, told.invalid) == (kind.name, None)
    (translated,) = told.commands
    assert isinstance(translated.command, Command)
    assert kind.key is not None
    assert translated.command.key == kind.key.format_map(example(kind)["data"])


@named
@pytest.mark.parametrize("broken", [{"type": "evt.other"}, {"data": {}}, {"specversion": "0.3"}, {"id": 7}], ids=str)
def test_schemas_refuse_invalid_events(kind: EventType, broken: dict[str, Any]) -> None:
    event = example(kind) | broken
    assert not judge(document()["components"]["messages"][kind.name]["payload"]).is_valid(event)


def test_the_document_is_asyncapi_3() -> None:
    specification = json.loads(gzip.decompress((VECTORS / "asyncapi-3.0.0.json.gz").read_bytes()))
    jsonschema_rs.validator_for(specification).validate(document())


def test_every_reference_in_the_document_resolves() -> None:
    found = list(_references(document()))
    assert len(found) > len(CATALOGUE)
    for reference in found:
        part: Any = document()
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for inner in part.values() for found in _references(inner)]
    return [found for inner in part for found in _references(inner)] if isinstance(part, list) else []


@named
def test_inbound_types_are_received_and_outbound_types_sent(kind: EventType) -> None:
    operation = document()["operations"][kind.name]
    assert operation["action"] == {"in": "receive", "out": "send"}[kind.direction]
    assert document()["channels"][kind.name]["address"] == kind.name

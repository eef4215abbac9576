"""The generated pages of docs/ match their sources."""

import re

import pytest

from credit_service.doors.http.problems import CODES
from credit_service.messages.inbound import CATALOGUE
from scripts import http_reference
from scripts.pages import DOCS, PAGES

DEAD_LETTERS = {"order_unknown", "payment_unknown"}  # only dead letters have these codes, never a response
SYNONYMS = {"credits_used", "credits_to_use"}


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_matches_its_source(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: uv run python -m scripts.pages"


def test_every_schema_file_belongs_to_an_event() -> None:
    assert {f"schemas/{path.name}" for path in (DOCS / "schemas").iterdir()} <= set(PAGES)


def test_errors_page_has_exactly_one_heading_per_code() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", page, flags=re.MULTILINE) == list(CODES)


def test_http_reference_names_every_code_of_a_response() -> None:
    page = (DOCS / "http.md").read_text(encoding="utf-8")
    assert set(re.findall(r"errors\.md#(\w+)", page)) == set(CODES) - DEAD_LETTERS


@pytest.mark.parametrize("type_", CATALOGUE)
def test_http_reference_lists_every_field_of_an_event(type_: str) -> None:
    fields = set(CATALOGUE[type_].model.model_fields)
    assert http_reference.documented_fields(type_) == fields - SYNONYMS - {"merchant_id", "metadata"}

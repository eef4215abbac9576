"""The generated pages of docs/ tell what their sources say."""

import re

import pytest

from credit_service.doors.http.problems import CODES
from credit_service.messages.inbound import CATALOGUE
from scripts import http_reference
from scripts.pages import DOCS, PAGES

DEAD_LETTERS = {"order_unknown", "payment_unknown"}  # codes that no request is answered with
SYNONYMS = {"credits_used", "credits_to_use"}


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_its_source_makes_of_it(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: uv run python -m scripts.pages"


def test_every_schema_is_of_an_event() -> None:
    assert {f"schemas/{path.name}" for path in (DOCS / "schemas").iterdir()} <= set(PAGES)


def test_the_page_of_errors_has_a_heading_for_each_code_and_no_other() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", page, flags=re.MULTILINE) == list(CODES)


def test_the_http_reference_names_every_code_that_a_request_may_be_answered_with() -> None:
    page = (DOCS / "http.md").read_text(encoding="utf-8")
    assert set(re.findall(r"errors\.md#(\w+)", page)) == set(CODES) - DEAD_LETTERS


@pytest.mark.parametrize("type_", CATALOGUE)
def test_the_http_reference_tells_every_field_that_is_read_of_an_event(type_: str) -> None:
    fields = set(CATALOGUE[type_].model.model_fields)
    assert http_reference.fields_told(type_) == fields - SYNONYMS - {"merchant_id", "metadata"}

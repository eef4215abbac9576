"""The page that explains each code: the `type` of a problem links to it, and docs/errors.md has the same text.

`errors.md`, beside this file, holds the text.
"""

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from credit_service.doors.http.problems import CODES, Problem
from credit_service.messages.faults import Fault


class Advice(NamedTuple):
    """What happened, and what the caller should do. Code stands in `backquotes`."""

    happened: str
    do: str


def _texts() -> tuple[list[str], dict[str, Advice]]:
    """The paragraphs of the introduction, and the advice of each code: errors.md has two paragraphs below each."""
    introduction, *sections = Path(__file__).with_name("errors.md").read_text(encoding="utf-8").split("\n## ")
    advice = {}
    for section in sections:
        code, *paragraphs = _paragraphs(section)
        advice[code] = Advice(*paragraphs)
    return _paragraphs(introduction), advice


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


INTRODUCTION, ADVICE = _texts()

EXAMPLES: dict[str, Problem] = {
    "validation_failed": Problem(
        "validation_failed",
        "The request has 2 faults; errors lists them.",
        errors=[
            Fault("/amount", "wrong_type", "Input should be a valid integer."),
            Fault("/memo", "unknown_field", "This field is not known."),
        ],
    ),
    "insufficient_credits": Problem(
        "insufficient_credits", "Not enough credits are available.", available=70, required=1000
    ),
}
"""Example problems, for codes that need one."""


def example(code: str) -> str | None:
    """The example of a code as JSON, None if there is none."""
    found = EXAMPLES.get(code)
    shape: Any = None if found is None else found.shape("0b5c7e0e4b9f4c6f8a4f3d0c1e2a9b77")
    return shape and json.dumps(shape, indent=2)


@cache
def page() -> bytes:
    """The page, in HTML that needs no other file."""
    parts = [_HEAD, *(f"<p>{_html(paragraph)}</p>" for paragraph in INTRODUCTION)]
    for code, (status, title) in CODES.items():
        happened, do = ADVICE[code]
        shown = example(code)
        parts += [
            f'<h2 id="{code}">{code}</h2>',
            f"<p><b>{status} &middot; {_html(title)}.</b> {_html(happened)}</p>",
            f"<p><b>What to do.</b> {_html(do)}</p>",
            "" if shown is None else f"<pre>{escape(shown)}</pre>",
        ]
    return "\n".join(filter(None, [*parts, "</html>"])).encode()


_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Errors</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, h2 { font-family: ui-monospace, monospace; }
pre { background: #8882; padding: 0.75rem; overflow-x: auto; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
:target { background: #fd08; }
:root { color-scheme: light dark; }
</style>
<h1>Errors</h1>"""


def _html(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))

"""Make the text of docs/errors.md. The service shows the same text at /docs/errors. scripts.pages writes the file."""

from textwrap import fill

from credit_service.doors.http.errors import ADVICE, INTRODUCTION, example
from credit_service.doors.http.problems import CODES

_SOURCE = (
    "This page is generated from `src/credit_service/doors/http/errors.md`. Each service shows it at `/docs/errors`."
)


def page() -> str:
    """Return the text of the page."""
    parts = ["# Errors", *map(_wrapped, INTRODUCTION), _SOURCE]
    for code, (status, title) in CODES.items():
        happened, do = ADVICE[code]
        shown = example(code)
        parts += [f"## {code}", _wrapped(f"**{status} · {title}.** {happened}"), _wrapped(f"**What to do.** {do}")]
        parts += [] if shown is None else [f"```json\n{shown}\n```"]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)

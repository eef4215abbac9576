"""Patterns of texts in messages, each with its sentence for a fault. \\d would match digits of all scripts."""

from typing import Final

UUID: Final = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
MERCHANT: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:~-]{0,63}$"
TIME: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
MONEY: Final = r"^[0-9]{1,13}(\.[0-9]{1,6})?$"
CURRENCY: Final = r"^[A-Z]{3}$"
PRINTABLE: Final = r"^[\x20-\x7e]+$"
ID: Final = r"^ *[\x21-\x7e][\x20-\x7e]*$"
SHOP: Final = r"^[a-zA-Z0-9][a-zA-Z0-9-]{0,62}\.[mM][yY][sS][hH][oO][pP][iI][fF][yY]\.[cC][oO][mM]$"
URL: Final = r"^https?://[\x21-\x7e]+$"
VISIBLE: Final = (
    r"[^\x00-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U000e0000-\U000e0fff]"
)
"""A visible character: no white space, no control character, no character that is drawn as nothing."""
JSON_TYPE: Final = r"^application/([a-z0-9.+-]+\+)?json\b"

SENTENCES: Final = {
    UUID: "Must be a UUID, like 6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11.",
    MERCHANT: "Must have 1 to 64 letters, digits or _ . : ~ -, and begin with a letter or digit.",
    TIME: "Must be a time with its zone (RFC 3339), like 2026-11-22T10:45:00Z.",
    MONEY: "Must be a decimal number with at most 6 decimals, like 149.90.",
    CURRENCY: "Must be a currency code of three capital letters, like GBP.",
    PRINTABLE: "Must be printable ASCII.",
    ID: "Must be printable ASCII, not only spaces.",
    SHOP: "Must be the shop's domain from Shopify, like example.myshopify.com.",
    URL: "Must be a URL, like https://example.com/credits.",
    VISIBLE: "Must have a visible character.",
    JSON_TYPE: "Must be application/json: only JSON data is accepted.",
}

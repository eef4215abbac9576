"""What may be written to a terminal."""


def printable(text: str) -> str:
    """Text of any origin as one line that cannot control a terminal.

    Control characters, line ends, text direction marks and lone surrogates become escapes like \\x1b.
    """
    if text.isprintable():
        return text
    return "".join([one if one.isprintable() else one.encode("unicode_escape").decode() for one in text])

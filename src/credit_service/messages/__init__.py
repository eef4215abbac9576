"""The messages that the service exchanges, the same at every door and outlet: inbound events, outbound events, shapes.

Nothing here knows how a message travels. Each body is declared once, as a pydantic model (`fields`, `inbound`). The
fast decoder of a body is derived from the same model (`fast`).
"""

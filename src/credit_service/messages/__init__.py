"""The words exchanged with the world, the same at every door and outlet: JSON values, events in, shapes out.

Nothing in here knows how a message travels. Bodies are declared once, as pydantic models (`fields`, `inbound`); the
fast decoder of the hot routes is derived from the same models (`fast`).
"""

"""The memory: one interface (`base`), one schema (`tables`), an engine each (`sqlite`, `postgres`).

A store loads, lets a pure function decide, and writes what that decided in one database transaction, if it still holds.
It knows nothing of HTTP, events or settings.
"""

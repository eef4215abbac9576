"""The memory: one interface (`base`), one schema (`tables`), an engine each (`sqlite`, later PostgreSQL).

A store loads under lock, lets a pure function decide, writes and commits, in one database transaction. It knows nothing
of HTTP, events or settings.
"""

"""Where the ledger is kept: one port (`engine`), one schema (`tables`), an engine each for SQLite and PostgreSQL.

An engine loads, lets a pure function decide, and writes what it decided in one database transaction, if it still holds.
Over any engine stand the subjects, each handed only to its consumers: `accounts`, `transactions`, `outbox`, `letters`,
`keys`, `webhooks`, `shops`, `policies`, `erasing`. Nothing here knows HTTP, NATS or settings (but for `databases`).
"""

"""credit-service: a prepaid-credit ledger and access gate.

The folders are named after ideas: `ledger` holds the rules of money as pure functions, `posting` is the one way in,
`storage` remembers, `messages` are the words all doors share, `doors` and `outlets` talk to the world, `gate` answers
whether a plugin may run. `service` plugs real parts together.
"""

__version__ = "0.1.0"

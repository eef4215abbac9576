"""The gate: may a merchant's plugin run? Asked by every storefront page, so answered from memory.

Status and money are never mixed up: no posting reads this cache, and this cache decides no posting.
"""

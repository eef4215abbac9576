"""The gate answers whether a merchant's plugin may run. Every storefront page asks, so it answers from memory.

Status and money are kept apart: no posting reads this cache.
"""

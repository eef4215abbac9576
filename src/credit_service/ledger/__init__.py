"""The rules of money, as functions over values.

Nothing in here does I/O, reads a clock, draws a random number, logs or waits: time, ids and callers come in as
arguments, so the same input gives the same outcome for ever. Start reading at `decide.py`; the laws that the docstrings
name (L1 to L15) are listed in `docs/laws.md`.
"""

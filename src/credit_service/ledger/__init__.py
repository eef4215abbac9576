"""The rules of money, as functions over values.

Nothing here does I/O, reads a clock, draws a random number, logs or waits. Time, ids and actors arrive as arguments, so
the same input always gives the same outcome. Start reading at `decide.py`. `docs/laws.md` lists the laws that the
docstrings name (L1 to L15).
"""

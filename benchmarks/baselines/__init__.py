"""Baselines: other usual solutions of the same task, written in good faith and without a handicap.

Each baseline says what it does and what it leaves out. A faster baseline makes the benchmark better.
"""

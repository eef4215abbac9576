"""What ours is held against: the usual ways of doing the same work, written in good faith and without a handicap.

Each says what it does and what it leaves out. Whoever finds a way to make one faster makes the benchmark better.
"""

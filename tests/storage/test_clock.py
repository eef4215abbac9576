"""The clock of postings refuses a reading after a jump, and its estimates never jump."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from credit_service.storage import clock as clocks
from credit_service.storage.clock import Clock, ClockMoved
from credit_service.storage.postgres.clock import DatabaseClock

SECOND = 1_000_000
YEAR = 31_536_000 * SECOND
T0 = 1_800_000_000 * SECOND


class Machine:
    """A machine with a steady clock and a wall clock. A test can set the wall clock only."""

    def __init__(self) -> None:
        self.steady = 5_000 * SECOND
        self.wall = T0

    def passes(self, micros: int) -> None:
        self.steady += micros
        self.wall += micros


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr("time.clock_gettime_ns", lambda _: machine.steady * 1000)
    monkeypatch.setattr(clocks, "wall_micros", lambda: machine.wall)
    return machine


def is_refused(read: Callable[[], int]) -> bool:
    try:
        read()
    except ClockMoved:
        return True
    return False


@pytest.mark.parametrize(
    ("jump", "refused"),
    [
        (0, False),
        (60 * SECOND, False),
        (-60 * SECOND, False),
        (60 * SECOND + 1, True),
        (-60 * SECOND - 1, True),
        (YEAR, True),
    ],
)
def test_reading_more_than_a_minute_off_is_refused(machine: Machine, jump: int, refused: bool) -> None:
    clock = Clock("this machine")
    clock.read()
    machine.wall += jump
    assert is_refused(clock.read) is refused


def test_clock_that_is_back_is_accepted_again(machine: Machine) -> None:
    clock = Clock("this machine")
    with capture_logs() as logged:
        assert clock.read() == T0
        machine.wall += YEAR
        for _ in range(3):
            machine.passes(SECOND)
            assert is_refused(clock.read)
        assert clock.fault == "The clock of this machine jumped: it is 31536000 seconds ahead of its steady time."
        machine.wall -= YEAR
        assert (clock.read(), clock.estimate()) == (T0 + 3 * SECOND, T0 + 3 * SECOND)
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("clock_moved", "error"),
        ("clock_is_back", "warning"),
    ]


def test_estimates_do_not_jump(machine: Machine) -> None:
    clock = Clock("this machine")
    clock.read()
    machine.passes(SECOND)
    assert clock.estimate() == T0 + SECOND
    machine.wall -= YEAR
    assert is_refused(clock.read)
    machine.passes(SECOND)
    assert clock.estimate() == T0 + 2 * SECOND


def test_estimates_follow_small_corrections_at_once(machine: Machine) -> None:
    clock = Clock("this machine")
    clock.read()
    machine.wall += 5 * SECOND
    assert clock.estimate() == T0
    clock.read()
    assert clock.estimate() == T0 + 5 * SECOND


def test_slow_drift_is_no_jump(machine: Machine) -> None:
    clock = Clock("this machine")
    clock.read()
    for _ in range(1_000):
        machine.passes(1_000 * SECOND)
        machine.wall += SECOND  # one part in a thousand
        clock.read()


def test_many_small_steps_are_a_jump(machine: Machine) -> None:
    clock = Clock("this machine")
    clock.read()
    steps = 0
    while not is_refused(clock.read):
        machine.passes(SECOND)
        machine.wall += 10 * SECOND
        steps += 1
    assert steps == 7


def test_fixed_clock_of_tests_is_not_checked(machine: Machine) -> None:
    instants = iter([T0, T0 + YEAR, T0])
    clock = Clock("this machine", lambda: next(instants))
    assert [clock.read(), clock.read(), clock.estimate()] == [T0, T0 + YEAR, T0]


def test_quick_answer_gives_database_clock_for_ten_seconds(machine: Machine) -> None:
    clock = DatabaseClock("the database")
    ahead = 3 * SECOND  # the database runs on another machine, with another clock
    assert clock.measured(T0 + ahead, machine.steady - 49_999) == T0 + ahead
    known = [clock.is_known]
    machine.passes(9 * SECOND)
    known.append(clock.is_known)
    assert clock.estimate() == T0 + ahead + 9 * SECOND
    machine.passes(SECOND)
    known.append(clock.is_known)
    assert known == [True, True, False]


def test_slow_database_answer_is_checked_but_gives_no_estimate(machine: Machine) -> None:
    clock = DatabaseClock("the database")
    clock.measured(T0, machine.steady)
    machine.passes(20 * SECOND)
    assert clock.measured(T0 + 19 * SECOND, machine.steady - SECOND) == T0 + 19 * SECOND
    assert not clock.is_known
    assert clock.estimate() == T0 + 20 * SECOND
    assert is_refused(lambda: clock.measured(T0 + YEAR, machine.steady - SECOND))

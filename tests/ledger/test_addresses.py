"""Ids that are addresses: valid UUIDs that contain the place of their row."""

from uuid import RFC_4122, UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger import addresses
from credit_service.ledger.addresses import ACCOUNT, EVENT, GRANT, TRANSACTION, Address, parse, prefix, text

accounts = st.integers(0, 2**62 - 1)
kinds = st.sampled_from([ACCOUNT, TRANSACTION, GRANT, EVENT])
numbers = st.integers(0, 2**48 - 1)


@given(accounts, kinds, numbers)
def test_an_id_is_a_uuid8_that_contains_its_address(account: int, kind: int, number: int) -> None:
    written = text(account, kind, number)
    identifier = UUID(written)
    assert str(identifier) == written
    assert (identifier.version, identifier.variant) == (8, RFC_4122)
    assert parse(identifier) == Address(account, kind, number)


@given(accounts, kinds, numbers, numbers)
def test_ids_of_one_kind_and_account_sort_by_number(account: int, kind: int, a: int, b: int) -> None:
    assert (text(account, kind, a) < text(account, kind, b)) == (a < b)
    assert text(account, kind, a).startswith(prefix(account, kind))


@given(st.tuples(accounts, kinds, numbers), st.tuples(accounts, kinds, numbers))
def test_different_rows_have_different_ids(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (text(*one) == text(*other)) == (one == other)


@pytest.mark.parametrize(
    ("account", "kind", "number", "written"),
    [
        (0, ACCOUNT, 0, "00000000-0000-8000-8000-000000000000"),
        (0x123456789ABCDEF0, TRANSACTION, 1, "48d159e2-6af3-87bc-8100-000000000001"),
        (2**62 - 1, GRANT, 2**48 - 1, "ffffffff-ffff-8fff-b200-ffffffffffff"),
    ],
)
def test_the_layout_of_an_id_is_fixed(account: int, kind: int, number: int, written: str) -> None:
    assert text(account, kind, number) == written
    assert parse(UUID(written)) == Address(account, kind, number)


@pytest.mark.parametrize(
    "foreign",
    [
        uuid4(),
        UUID(int=0),
        UUID("00000000-0000-7000-8000-000000000001"),  # another version
        UUID("00000000-0000-8000-c000-000000000001"),  # another variant
        UUID("00000000-0000-8000-8001-000000000001"),  # another epoch
    ],
)
def test_an_id_that_the_service_never_creates_is_none(foreign: UUID) -> None:
    assert parse(foreign) is None


def test_an_accounts_text_names_its_address() -> None:
    assert parse(UUID(addresses.account_text(7))) == Address(7, addresses.ACCOUNT, 0)

"""The statements of the optimistic way: each writes a batch and commits, but only if nothing has changed."""

from functools import lru_cache, partial
from itertools import count
from typing import Final

from credit_service.storage.postgres.statements import (
    CHECKED,
    CLOCK,
    LAST_EVENT,
    LOCKS,
    LOOK_UP,
    VERSION,
    Part,
    part_text,
)
from credit_service.storage.rows import CHANGES, KEYS

LAG_MICROS: Final = 100_000
"""The most that may pass between a decision and its writing: credits may expire meanwhile (L7)."""


@lru_cache(maxsize=256)
def write_unless_changed(parts: tuple[Part, ...]) -> str:
    """Like `write`, as a transaction of its own, and only if nothing has changed since the batch was decided.

    More parameters: the lanes to lock, and the last event of each; the time of the decision, unless a test has its own
    clock; those of `_as_known`; and how many accounts are updated, if any. Returns the time, whether one of the keys
    was used before, and the version of the rows: NULL if nothing was written.

    What is looked up before the lanes are locked may change before they are. Then a key of `events` or `transactions`
    is broken, or a row of `accounts` has another version and is not updated, which ends in a division by zero.
    """
    number = count(1)
    texts = [part_text(part, number, only="(SELECT ready FROM locked)") for part in parts]
    lanes, last, decided_at, *known = (next(number) for _ in range(8))
    updates = [f"(SELECT count(*) FROM part_{index})" for index, part in enumerate(parts) if part.how == CHECKED]
    written = f"1 / ({' + '.join(updates)} = ${next(number)})::integer" if updates else "1"
    version = f"CASE WHEN {written} = 1 THEN {VERSION} END"
    return f"""
WITH found AS MATERIALIZED (
    SELECT {_as_known(*known)}
), fits AS MATERIALIZED (
    SELECT FROM found WHERE same AND NOT used
    AND NOT EXISTS (
        SELECT FROM unnest(${lanes}::integer[], ${last}::bigint[]) wanted(lane, last) WHERE last <> {LAST_EVENT}
    )
), locked AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock({LOCKS}, lane)) > 0
        AND coalesce(abs({CLOCK} - ${decided_at}::bigint) < {LAG_MICROS}, true) AS ready
    FROM fits, unnest(${lanes}::integer[]) lane
), {", ".join([f"part_{index} AS ({text})" for index, text in enumerate(texts)])}
SELECT {CLOCK}, used, CASE WHEN (SELECT ready FROM locked) THEN {version} END FROM found"""


def _as_known(accounts: int, versions: int, settled: int, used_by: int, keys: int) -> str:
    """The columns `same`, whether all accounts are as known, and `used`, whether any of the keys was used before.

    Parameters, by their numbers: accounts, the versions of their rows, when they were settled; accounts and keys. The
    version alone proves nothing after a failover: the new server may give it out again.
    """
    looked_up = partial(LOOK_UP.format, what="", name="found")
    same = looked_up(
        table="accounts",
        where="accounts.number = known.number AND xmin = known.version AND accounts.settled_at = known.settled_at",
    )
    first = looked_up(table="transactions", where="account = asked.account AND key = asked.key")
    known = (
        f"unnest(${accounts}::bigint[], ${versions}::xid[], ${settled}::bigint[]) known(number, version, settled_at)"
    )
    return (
        f"(SELECT count(*) FROM {known} {same}) = cardinality(${accounts}::bigint[]) AS same, "
        f"EXISTS (SELECT FROM unnest(${used_by}::bigint[], ${keys}::text[]) asked(account, key) {first}) AS used"
    )


@lru_cache(maxsize=64)
def write_alone_unless_changed(parts: tuple[Part, ...]) -> str:
    """Like `write_unless_changed`, for one recent account, which is the first part, and one key.

    After the version of the account comes when it was settled; after all parts the lane and its last event, the time
    of the decision, and the key. A lone caller waits for each node of a plan, and this plan has fewer: it has no
    arrays, and every other part depends on the first, which checks the account as it writes it.
    """
    version = len(CHANGES["accounts"]) + len(KEYS["accounts"]) + 1
    account, settled, number = version - 1, version + 1, count(version + 2)
    ready = f"(SELECT ready FROM locked) AND old.settled_at = ${settled}::bigint"
    texts = [part_text(parts[0], count(1), only=ready)]
    texts += [part_text(part, number, only="EXISTS (SELECT FROM part_0)") for part in parts[1:]]
    lane, last, decided_at, key = (next(number) for _ in range(4))
    return f"""
WITH found AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM transactions WHERE account = ${account} AND key = ${key}::text) AS used
), locked AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock({LOCKS}, ${lane}::integer)) > 0
        AND coalesce(abs({CLOCK} - ${decided_at}::bigint) < {LAG_MICROS}, true) AS ready
    FROM found WHERE NOT used
        AND ${last}::bigint = (SELECT coalesce(max(id), 0) FROM events WHERE lane = ${lane}::integer)
), {", ".join([f"part_{index} AS ({text})" for index, text in enumerate(texts)])}
SELECT {CLOCK}, used, (SELECT {VERSION} FROM part_0) FROM found"""

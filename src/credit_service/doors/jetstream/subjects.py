"""By which subjects events come in: those of the catalogue or what they were remapped to, and one more token.

With partitions NATS itself copies all inbound subjects into a stream whose subjects begin with the number of a
partition, which it works out from the additional token: all events of a merchant are in one, in their order.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from nats.js.api import RetentionPolicy, StreamConfig, StreamSource, SubjectTransform

from credit_service.messages.inbound import CATALOGUE
from credit_service.settings import SettingsError

_PARTITIONED: Final = "credits.in."


class Named(NamedTuple):
    """What a subject says of its events: their type, what the sender calls it, and the merchant, if it names one."""

    type: str
    base: str
    merchant_id: UUID | None


class Subjects:
    """The inbound subjects; `remapped` are subjects by event type, for those that are not named like it.

    Raises SettingsError for a type that there is not, and for a subject that would be of two types.
    """

    def __init__(self, remapped: Mapping[str, str]) -> None:
        self._types = {remapped.get(type_, type_): type_ for type_ in CATALOGUE}
        if unknown := sorted(set(remapped) - set(CATALOGUE)):
            raise SettingsError(f"NATS_SUBJECTS: no event that comes in is called {unknown[0]}.")
        if len(self._types) != len(CATALOGUE) or any(base in self._types for base in _parents(self._types)):
            raise SettingsError(
                "NATS_SUBJECTS: a subject, with one more token or not, would be of two kinds of events."
            )

    @property
    def patterns(self) -> list[str]:
        """All that is to be carried by streams: each subject, and with one more token."""
        return [pattern for subject in self._types for pattern in (subject, f"{subject}.*")]

    def named(self, subject: str) -> Named | None:
        """What a subject says, None where it is none of ours."""
        if (type_ := self._types.get(subject)) is not None:
            return Named(type_, subject, None)
        base, _, token = subject.rpartition(".")
        type_ = self._types.get(base)
        return None if type_ is None else Named(type_, base, _merchant(token))


def _parents(subjects: Iterable[str]) -> list[str]:
    return [subject.rpartition(".")[0] for subject in subjects]


def _merchant(token: str) -> UUID | None:
    try:
        return UUID(token) if len(token) == 36 else None
    except ValueError:
        return None  # some other way of partitioning


def whole(subject: str) -> str:
    """The subject that an event was sent to, also where it came by way of a partition."""
    return subject.removeprefix(_PARTITIONED).partition(".")[2] if subject.startswith(_PARTITIONED) else subject


def partition_filter(partition: int) -> str:
    """The subjects of one partition."""
    return f"{_PARTITIONED}{partition}.>"


def partitioned(name: str, carried: Mapping[str, Sequence[str]], partitions: int) -> StreamConfig:
    """The stream into which NATS copies what these streams carry, divided among partitions; what was taken leaves it.

    What has no additional token is all in the first: its order is kept, too.
    """

    def transform(pattern: str) -> SubjectTransform:
        base = pattern.removesuffix(".*")
        if base == pattern:
            return SubjectTransform(src=pattern, dest=f"{_PARTITIONED}0.{base}")
        number = f"{{{{partition({partitions},1)}}}}"
        return SubjectTransform(src=pattern, dest=f"{_PARTITIONED}{number}.{base}.{{{{wildcard(1)}}}}")

    def source(stream: str, patterns: Iterable[str]) -> StreamSource:
        return StreamSource(name=stream, subject_transforms=[transform(pattern) for pattern in patterns])

    sources = [source(stream, patterns) for stream, patterns in carried.items()]
    return StreamConfig(name=name, sources=sources, retention=RetentionPolicy.WORK_QUEUE)

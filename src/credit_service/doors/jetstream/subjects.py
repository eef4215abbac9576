"""The inbound subjects: those of the catalogue, or their remapped names, each with an optional further token.

With partitions, NATS copies all inbound subjects into a stream whose subjects begin with a partition number. It
computes the number from the further token, so all events of a merchant are in one partition, in order.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from nats.js.api import RetentionPolicy, StreamConfig, StreamSource, SubjectTransform

from credit_service.messages.inbound import CATALOGUE
from credit_service.settings import SettingsError

_PARTITIONED: Final = "credits.in."


class Named(NamedTuple):
    """The content of a subject: the event type, the subject without the further token, and the merchant, if named."""

    type: str
    base: str
    merchant_id: str | None


class Subjects:
    """The inbound subjects; `remapped` holds subjects by event type, where the two differ.

    Raises SettingsError for an unknown type, and for a subject that would mean two types.
    """

    def __init__(self, remapped: Mapping[str, str]) -> None:
        self._types = {remapped.get(type_, type_): type_ for type_ in CATALOGUE}
        if unknown := sorted(set(remapped) - set(CATALOGUE)):
            raise SettingsError(f"NATS_SUBJECTS: there is no inbound event {unknown[0]}.")
        if len(self._types) != len(CATALOGUE) or any(base in self._types for base in _parents(self._types)):
            raise SettingsError(
                "NATS_SUBJECTS: a subject, with or without a further token, would mean two types of events."
            )

    @property
    def patterns(self) -> list[str]:
        """The patterns that streams must carry: each subject without and with a further token."""
        return [pattern for subject in self._types for pattern in (subject, f"{subject}.*")]

    def named(self, subject: str) -> Named | None:
        """Parse a subject; None if it is not ours."""
        if (type_ := self._types.get(subject)) is not None:
            return Named(type_, subject, None)
        base, _, token = subject.rpartition(".")
        type_ = self._types.get(base)
        return None if type_ is None else Named(type_, base, _merchant(token))


def _parents(subjects: Iterable[str]) -> list[str]:
    return [subject.rpartition(".")[0] for subject in subjects]


def _merchant(token: str) -> str | None:
    try:
        return str(UUID(token)) if len(token) == 36 else None
    except ValueError:
        return None  # the sender partitions by something else


def whole(subject: str) -> str:
    """The subject that an event was sent to, without the prefix of a partition."""
    return subject.removeprefix(_PARTITIONED).partition(".")[2] if subject.startswith(_PARTITIONED) else subject


def partition_filter(partition: int) -> str:
    """The subjects of one partition."""
    return f"{_PARTITIONED}{partition}.>"


def partitioned(name: str, carried: Mapping[str, Sequence[str]], partitions: int) -> StreamConfig:
    """The stream into which NATS copies these streams, by partition; taken messages leave it.

    Events without a further token are all in the first partition, so they stay in order.
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

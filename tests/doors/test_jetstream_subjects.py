"""The subjects of inbound events, remapping, and partitions."""

from pathlib import Path

import pytest

from credit_service.doors.jetstream.subjects import Named, Subjects, partitioned, whole
from credit_service.messages.inbound import CATALOGUE
from credit_service.settings import SettingsError
from tests.commands import command

CREATED = "evt.merchant.created"
MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        (CREATED, Named(CREATED, CREATED, None)),
        (f"{CREATED}.{MERCHANT}", Named(CREATED, CREATED, MERCHANT)),
        (f"{CREATED}.7", Named(CREATED, CREATED, None)),
        (f"{CREATED}.{'x' * 36}", Named(CREATED, CREATED, None)),
        (f"{CREATED}.7.8", None),
        ("evt.merchant", None),
        ("created", None),
        ("shop.paid", Named("evt.shopify.webhook.order_paid", "shop.paid", None)),
        ("evt.shopify.webhook.order_paid", None),
    ],
)
def test_subject_names_the_type_and_perhaps_the_merchant(subject: str, named: Named | None) -> None:
    assert Subjects({"evt.shopify.webhook.order_paid": "shop.paid"}).named(subject) == named


def test_every_subject_may_have_one_more_token() -> None:
    assert Subjects({}).patterns == [pattern for type_ in CATALOGUE for pattern in (type_, f"{type_}.*")]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("evt.nothing=a", "NATS_SUBJECTS: there is no inbound event evt.nothing."),
        (f"{CREATED}=evt.billing.trial_started", "NATS_SUBJECTS: a subject, with or without a further token, would"),
        (f"{CREATED}=evt.billing.trial_started.x", "NATS_SUBJECTS: a subject, with or without a further token, would"),
    ],
)
def test_impossible_remapping_stops_the_start(pairs: str, said: str, tmp_path: Path) -> None:
    remapped = dict([pairs.split("=")])
    with pytest.raises(SettingsError):
        Subjects(remapped)
    ran = command("config", cwd=tmp_path, NATS_SUBJECTS=pairs)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_partition_follows_the_merchant_or_is_the_first() -> None:
    config = partitioned("CREDITS_IN_4", {"SHOP": ["a", "a.*"]}, 4)
    assert config.sources is not None
    (source,) = config.sources
    transforms = [(one.src, one.dest) for one in source.subject_transforms or ()]
    assert (config.subjects, source.name) == (None, "SHOP")
    assert transforms == [("a", "credits.in.0.a"), ("a.*", "credits.in.{{partition(4,1)}}.a.{{wildcard(1)}}")]


def test_event_of_a_partition_has_its_original_subject() -> None:
    assert whole(f"credits.in.3.{CREATED}.{MERCHANT}") == f"{CREATED}.{MERCHANT}"
    assert whole(CREATED) == CREATED

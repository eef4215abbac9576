"""Prometheus sees every worker, and its alerts stand on metrics that there are and lead to what is to be done."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from credit_service.settings import Settings
from scripts.smoke import Walk
from tests.acceptance.test_documents import anchors
from tests.deploy.dockerfile import ROOT
from tests.served import Served, die_with_parent, reaped, served

FOLDER = ROOT / "deploy" / "prometheus"
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
COMPOSED: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["prometheus"]
ALERTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
TESTED: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "alerts.yml").read_text())["tests"]
METRICS = {name for alert in ALERTS for name in re.findall(r"\bcredits_\w+", alert["expr"])}
PATIENCE_SECONDS = 60

Program = Callable[[str], str]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", FOLDER / "prometheus.yml"],
        ["check", "rules", FOLDER / "alerts.yml"],
        ["test", "rules", Path(__file__).parent / "alerts.yml"],
    ],
    ids=["config", "rules", "when alerts fire"],
)
def test_promtool_finds_no_fault(program: Program, arguments: list[str | Path]) -> None:
    ran = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_it_is_tested_when_an_alert_fires_and_when_it_is_silent(alert: str) -> None:
    cases = [case for test in TESTED for case in test["alert_rule_test"] if case["alertname"] == alert]
    assert {"exp_alerts" in case for case in cases} == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_leads_to_a_heading_that_says_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / path)


def test_every_heading_of_what_to_do_belongs_to_an_alert() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    section = re.search(r"^## When an alert fires\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    headings = re.findall(r"^### (.*)$", section[1], flags=re.MULTILINE)
    led_to = {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS}
    assert {heading.lower().replace(" ", "-") for heading in headings} == led_to


def test_what_the_alerts_say_of_defaults_are_the_defaults() -> None:
    slow = next(alert for alert in ALERTS if alert["alert"] == "CreditsPostingSlow")
    assert f"at {Settings(_env_file=None).posting_deadline_seconds:g} seconds" in slow["annotations"]["summary"]  # type: ignore[call-arg]


class Prometheus:
    """A real Prometheus with our configuration, but for where the workers are and how often they are asked."""

    def __init__(self, program: str, folder: Path, targets: list[str], port: int) -> None:
        config = {**CONFIG, "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}}
        (job,) = [job for job in CONFIG["scrape_configs"] if job["job_name"] == "credit-service"]
        config["scrape_configs"] = [{**job, "static_configs": [{"targets": targets}]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "log"
        places = {"/etc/prometheus": str(folder), "=/prometheus": f"={folder / 'data'}"}
        options = [_replaced(option, places) for option in COMPOSED["command"]]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [program, *options, f"--web.listen-address=127.0.0.1:{port}"],
                cwd=folder,
                text=True,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def get(self, path: str, **asked: str) -> Any:
        """What its API answers; None while it does not."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            answer = httpx2.get(f"{self.url}/api/v1/{path}", params=asked, timeout=30)
            return answer.json()["data"] if answer.status_code == 200 else None
        except httpx2.HTTPError:
            return None

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for what it sees; it looks once a second."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"never seen: {what}"
            time.sleep(0.1)


def _replaced(text: str, places: dict[str, str]) -> str:
    for place, instead in places.items():
        text = text.replace(place, instead)
    return text


@pytest.fixture
def workers(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> Iterator[list[tuple[Served, str]]]:
    """Two processes that serve, each with its port for Prometheus."""
    with ExitStack() as stack:
        made = []
        for number in range(2):
            port = unused_tcp_port_factory() % 60_000 + 2_000
            (folder := tmp_path / f"{number}").mkdir()
            service = stack.enter_context(served(folder / "ledger.db", settings={"METRICS_PORT": f"{port}"}))
            made.append((service, f"127.0.0.1:{port}"))
        yield made


@pytest.mark.slow
def test_a_real_prometheus_sees_every_worker_each_metric_of_the_alerts_and_one_that_goes_away(
    program: Program, workers: list[tuple[Served, str]], tmp_path: Path, unused_tcp_port: int
) -> None:
    for service, _ in workers:
        with httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}) as client:
            assert list(Walk(client).steps())
    targets = [target for _, target in workers]
    with reaped((prometheus := Prometheus(program("prometheus"), tmp_path, targets, unused_tcp_port)).process):

        def up() -> set[str]:
            seen = prometheus.get("query", query='up{job="credit-service"} == 1') or {"result": []}
            return {sample["metric"]["instance"] for sample in seen["result"]}

        prometheus.until(lambda: up() == set(targets), "both workers")
        told = set(prometheus.get("label/__name__/values"))
        assert METRICS - told == set()
        health = COMPOSED["healthcheck"]["test"][-1].replace("http://127.0.0.1:9090", prometheus.url)
        assert httpx2.get(health, timeout=30).status_code == 200

        def rules() -> dict[str, tuple[str, str]]:
            groups = (prometheus.get("rules") or {"groups": []})["groups"]
            return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}

        # Before the first scrape there is nobody, and the alert of that begins to wait.
        silent = {alert["alert"]: ("ok", "inactive") for alert in ALERTS}
        prometheus.until(lambda: rules() == silent, "every rule computed, and no alert")
        workers[1][0].stop()
        prometheus.until(lambda: rules()["CreditsServiceDown"] == ("ok", "pending"), "the alert of a worker away")

"""Prometheus scrapes every worker, and its alerts use real metrics and real runbook headings."""

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
    ids=["config", "rules", "alerts"],
)
def test_promtool_accepts_the_files(program: Program, arguments: list[str | Path]) -> None:
    ran = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_alerts_file_tests_each_alert_firing_and_silent(alert: str) -> None:
    cases = [case for test in TESTED for case in test["alert_rule_test"] if case["alertname"] == alert]
    assert {"exp_alerts" in case for case in cases} == {True, False}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_has_severity_summary_and_existing_runbook(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / path)


def test_every_runbook_heading_belongs_to_an_alert() -> None:
    text = (ROOT / "docs/operating.md").read_text()
    section = re.search(r"^## When an alert fires\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    assert section is not None
    headings = re.findall(r"^### (.*)$", section[1], flags=re.MULTILINE)
    runbooks = {alert["annotations"]["runbook"].partition("#")[2] for alert in ALERTS}
    assert {heading.lower().replace(" ", "-") for heading in headings} == runbooks


def test_alert_text_matches_default_deadline() -> None:
    slow = next(alert for alert in ALERTS if alert["alert"] == "CreditsPostingSlow")
    assert f"at {Settings(_env_file=None).posting_deadline_seconds:g} seconds" in slow["annotations"]["summary"]  # type: ignore[call-arg]


class Prometheus:
    """A real Prometheus with our configuration. Only the targets and the scrape interval differ."""

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
        """Return the data of an API call, or None while the API does not answer."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            answer = httpx2.get(f"{self.url}/api/v1/{path}", params=asked, timeout=30)
            return answer.json()["data"] if answer.status_code == 200 else None
        except httpx2.HTTPError:
            return None

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until Prometheus sees the condition. It scrapes once a second."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"timed out while waiting for {what}"
            time.sleep(0.1)


def _replaced(text: str, places: dict[str, str]) -> str:
    for place, instead in places.items():
        text = text.replace(place, instead)
    return text


@pytest.fixture
def workers(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> Iterator[list[tuple[Served, str]]]:
    """Run two services, and yield each with its address for Prometheus."""
    with ExitStack() as stack:
        made = []
        for number in range(2):
            port = unused_tcp_port_factory() % 60_000 + 2_000
            (folder := tmp_path / f"{number}").mkdir()
            service = stack.enter_context(served(folder / "ledger.db", settings={"METRICS_PORT": f"{port}"}))
            made.append((service, f"127.0.0.1:{port}"))
        yield made


@pytest.mark.slow
def test_prometheus_sees_every_worker_metric_and_missing_worker(
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
        names = set(prometheus.get("label/__name__/values"))
        assert METRICS - names == set()
        health = COMPOSED["healthcheck"]["test"][-1].replace("http://127.0.0.1:9090", prometheus.url)
        assert httpx2.get(health, timeout=30).status_code == 200

        def rules() -> dict[str, tuple[str, str]]:
            groups = (prometheus.get("rules") or {"groups": []})["groups"]
            return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}

        # Before the first scrape no worker is up, so wait until the alert for that is inactive again.
        silent = {alert["alert"]: ("ok", "inactive") for alert in ALERTS}
        prometheus.until(lambda: rules() == silent, "all rules without an alert")
        workers[1][0].stop()
        prometheus.until(lambda: rules()["CreditsServiceDown"] == ("ok", "pending"), "the alert for a missing worker")

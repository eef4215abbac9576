"""Judge the tests of the ledger: mutmut changes one thing of it at a time, in a copy, and a test must fail.

`python -m scripts.mutants` fails on a mutant that survives and is not listed in tests/mutants.toml, where those stand
that no test can tell from the original, each with the reason; and on one that is listed there and does not survive.
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

# Few examples, and the same ones in the same order every time.
SETTLED = {"HYPOTHESIS_PROFILE": "mutation", "PYTHONHASHSEED": "0"}
# A mutant that runs for ever may take memory all the while; beyond this it fails its test.
MEMORY = 2 * 1024**3

SURVIVED = "No test fails when this is changed. Write one; only if there can be none, list it with the reason:"
STALE = f"{LISTED.relative_to(ROOT)} lists what does not survive, or is not there any more; take it out:"


class Mutant(NamedTuple):
    """A change, named by what it changes, so that the name lasts as long as the code it is about."""

    function: str
    was: str
    now: str

    def __str__(self) -> str:
        """Its entry in the list."""
        said = (f"{name} = {json.dumps(text, ensure_ascii=False)}" for name, text in self._asdict().items())
        return "\n".join(["[[equivalent]]", *said, 'why = ""'])


def main() -> int:
    """Run all mutants and say which are not as they should be."""
    # mutmut keeps what it found until the function changes, also when it is the tests that changed.
    shutil.rmtree(COPY, ignore_errors=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _mutmut("run", show=sys.stdout.isatty())
    _mutmut("export-cicd-stats")
    total: int = json.loads((COPY / "mutmut-cicd-stats.json").read_text())["total"]

    # A line for each that no test failed on: "name: what became of it". One that took too long counts as killed, but
    # may have been slow for other reasons, and so it may be listed, too.
    became = [line.strip().split(": ") for line in _mutmut("results").splitlines()]
    slow = Counter(_mutant(name) for name, what in became if what == "timeout")
    survived = Counter(_mutant(name) for name, what in became if what != "timeout")
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
    """What mutmut calls credit_service.ledger.draft.xǁDraftǁ_keep__mutmut_14, where the number is good for one run."""
    parts = re.fullmatch(r"credit_service\.ledger\.(\w+)\.x.(.+)__mutmut_\d+", name)
    assert parts is not None, name
    lines = [line for line in _mutmut("show", name).splitlines() if not line.startswith(("---", "+++"))]
    was, now = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return Mutant(f"{parts[1]}.{parts[2].replace('ǁ', '.')}", was, now)


def _mutmut(*arguments: str, show: bool = False) -> str:
    command = ["mutmut", *arguments]
    output = None if show else subprocess.PIPE
    run = subprocess.run(command, cwd=ROOT, env=os.environ | SETTLED, stdout=output, text=True)  # noqa: S603
    if run.returncode:
        sys.exit(f"{run.stdout or ''}\n{' '.join(command)} failed")
    return run.stdout or ""


if __name__ == "__main__":
    sys.exit(main())

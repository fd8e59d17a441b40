"""What a job of the test cluster runs: verb after verb in one process, and each one's exit code.

    python -m tests.cluster.verbs commands.json

The file holds lists of words. One process for all, as most of a verb's time here is its imports;
that a job's own exit code is its verb's is tested beside this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jobs.__main__ import main

SAYS = "verb: "


def code_of(words: list[str]) -> int:
    """Run a verb and return its exit code, as `jobs.__main__.run` makes it."""
    try:
        main(words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def run(commands: list[list[str]]) -> None:
    """Run them all, whatever becomes of each."""
    for number, words in enumerate(commands):
        code = code_of([*words, "--json"])
        print(f"\n{SAYS}{number} {code}", flush=True)


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

"""The command line: `segmill VERB ...` is `python -m jobs VERB ...`.

Nothing heavy is imported here, and only the verb that is called is imported at all, so that
`segmill --help` answers at once.
"""

from __future__ import annotations

import atexit
import difflib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from jobs import VERBS
from pipeline.heap import keep_freed_memory
from pipeline.release import release

if TYPE_CHECKING:
    from collections.abc import Sequence

_USAGE = """\
Usage: segmill VERB [OPTIONS] ...

  Distributed dataset processing and batch labelling for image segmentation.

Verbs:
{verbs}

`segmill VERB --help` explains a verb. Every verb takes --json (one summary line for machines) and
--debug (tracebacks). Exit codes: 0 done, 1 failed, 2 usage, 3 more failures than --max-errors,
4 a gate said no. `segmill --install-completion` teaches the shell to complete verbs and names.
"""
_COMPLETE = "_SEGMILL_COMPLETE"
"""What a shell sets that asks for completions."""

_NO_ALGEBRA = {"convert", "export", "ingest"}
"""Verbs that never multiply matrices: OpenBLAS's threads would start to spin and wait for some."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the verb that the arguments name."""
    args = list(sys.argv[1:] if argv is None else argv)
    if _COMPLETE in os.environ or args[:1] in (["--install-completion"], ["--show-completion"]):
        from jobs.completion import complete

        return complete(args)
    verb = args[0] if args else "--help"
    if verb in {"--help", "-h", "help"}:
        print(_USAGE.format(verbs="\n".join(f"  {v:12} {text}" for v, text in VERBS.items())))
        return
    if verb == "--version":
        print(release())
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`segmill --help` lists the verbs"
        print(f"segmill: no verb is called {verb!r}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    if verb in _NO_ALGEBRA:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app = import_module(f"jobs.{verb.replace('-', '_')}").APP
    if "--help" in args or len(args) == 1:
        from jobs.examples import show

        show(app, verb)
    app(args[1:], prog_name=f"segmill {verb}")


def run() -> None:
    """Be the process: run the verb that the command line names and leave with its exit code.

    Arrow's and torch's own threads abort a process whose interpreter ends before they do. All that
    a verb has to say is written by then, so the process leaves without waiting for them.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):  # else the user has chosen
        keep_freed_memory()
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()

"""A look into a .pt2 archive before `torch.export.load` may run what it holds.

torch 2.6 to 2.15 unpickle weights when a safe load fails, unpickle opaque constants, and hand the
archive's size expressions to sympy, which evaluates them as Python. None of it occurs in a plain
program; an archive with any of it is refused.
"""

from __future__ import annotations

import ast
import json
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from pipeline.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORCE: Final = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_LOCK: Final = threading.Lock()
_PICKLED: Final = ("opaque_obj", "custom_obj")
"""How the names of constants that are unpickled begin."""
_PLAIN: Final = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def check_archive(path: str) -> None:
    """Read an archive's tables and raise ModelError for what would run code.

    Raises:
        ModelError: it is no archive, or would.
    """
    try:
        reader = torch._C.PyTorchFileReader(path)
        records = [str(name) for name in reader.get_all_records()]
    except RuntimeError:
        raise ModelError(f"{path}: not a whole .pt2 file; export it again") from None
    pickled = [r for r in records if any(f"constants/{p}" in r for p in _PICKLED)]
    if pickled:
        raise ModelError(_refusal(path, f"the pickled constant {pickled[0]}"))
    for record in records:
        if record.endswith(".json"):
            try:
                told = json.loads(reader.get_record(record))
            except ValueError:
                raise ModelError(f"{path}: {record} is damaged; export it again") from None
            for text in _expressions(told):
                if not _is_plain(text):
                    raise ModelError(_refusal(path, f"the expression {text[:60]!r}"))


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make torch.load refuse pickles meanwhile: torch.export.load falls back to running them."""
    with _LOCK:
        before = os.environ.get(_FORCE)
        os.environ[_FORCE] = "1"
        try:
            yield
        finally:
            os.environ.pop(_FORCE)
            if before is not None:
                os.environ[_FORCE] = before


def _refusal(path: str, what: str) -> str:
    return (
        f"{path}: holds {what}, which is not loaded since it can run code; export the program with "
        "plain tensors"
    )


def _expressions(told: Any) -> Iterator[str]:
    """Yield the size expressions of a table, however deep they lie."""
    stack = [told]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "expr_str" and isinstance(inner, str):
                    yield inner
                stack.append(inner)
        elif isinstance(value, list):
            stack.extend(value)


def _is_plain(text: str) -> bool:
    """Whether an expression is arithmetic on symbols: no attributes, no text, no functions.

    Sympy's classes begin with a capital letter; Python's functions do not.

    >>> _is_plain("Add(Mul(Integer(2), Symbol('s0', positive=True)), Integer(1))")
    True
    >>> _is_plain("eval('1')") or _is_plain("Integer('f()')") or _is_plain("().__class__")
    False
    """
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, _PLAIN):
            return False
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or not node.func.id[:1].isupper():
                return False
            if node.func.id == "Symbol":
                names.update(id(arg) for arg in node.args)
    return all(
        id(node) in names and str(node.value).isidentifier()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )

"""Every verb's --help ends with examples that parse, and the shell completes what can be named."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
import typer

from jobs import VERBS, completion
from jobs.__main__ import main
from jobs.examples import EXAMPLES, show

_SHOWN = [(name, text) for name, texts in EXAMPLES.items() for text in texts]


def app_of(verb: str) -> typer.Typer:
    return import_module(f"jobs.{verb.replace('-', '_')}").APP


def parse(text: str) -> None:
    """Parse a command line as the verb would, and do nothing of it."""
    program, verb, *words = shlex.split(text.replace("\\\n", " "))
    assert program == "segmill"
    command = typer.main.get_command(app_of(verb))
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(verb, words)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples(verb):
    assert 2 <= len(EXAMPLES[verb]) <= 3
    app = app_of(verb)
    if app.registered_callback is None and len(app.registered_commands) == 1:
        return
    parts = {c.name or c.callback.__name__ for c in app.registered_commands}
    told = {name.partition(" ")[2] for name in EXAMPLES if name.startswith(f"{verb} ")}
    shown = {text.split()[2] for text in EXAMPLES[verb]}
    assert told <= parts
    assert shown <= parts
    if verb == "store":
        assert told == parts


@pytest.mark.parametrize(("name", "text"), _SHOWN)
def test_every_example_parses(name, text):
    verb = name.partition(" ")[0]
    assert text.startswith(f"segmill {name}")
    assert max(map(len, text.splitlines())) <= 78, "wraps on a narrow terminal"
    if verb not in VERBS:
        pytest.skip(f"no verb is called {verb} yet")
    parse(text)


def test_the_check_itself_sees_a_wrong_example():
    with pytest.raises(Exception, match="--form"):
        parse("segmill ingest VOCdevkit stores/voc --form voc")
    with pytest.raises(Exception, match=r"[Mm]issing"):
        parse("segmill convert a b --from voc")


@pytest.mark.parametrize("words", [["convert"], ["store"], ["store", "vacuum"], ["label"]])
def test_help_shows_them_whole(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in EXAMPLES[" ".join(words)]:
        assert " ".join(text.split()) in shown


def test_brackets_in_an_example_are_no_markup(monkeypatch):
    monkeypatch.setitem(EXAMPLES, "toy", ("segmill toy [bold]x[/bold]",))
    app = typer.Typer()
    app.command("toy")(lambda: None)
    show(app, "toy")
    assert app.registered_commands[0].epilog.endswith(r"segmill toy \[bold]x\[/bold]")


def complete(line: str, shell: str = "bash") -> list[str]:
    """Ask as a shell does, in a process of its own."""
    words = line.split()
    at = len(words) if line.endswith(" ") else len(words) - 1
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(at), "_TYPER_COMPLETE_ARGS": line}
    ended = subprocess.run(
        [sys.executable, "-m", "jobs"],
        capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | asked | {"_SEGMILL_COMPLETE": f"complete_{shell}"},
    )  # fmt: skip
    assert not ended.stderr
    return ended.stdout.split("\n")[:-1] if ended.stdout else []


def test_a_shell_completes_verbs_and_values():
    assert complete("segmill ev") == ["evaluate"]
    assert complete("segmill convert a b --from cityscapes") == ["cityscapes"]
    assert "camvid-fpn" in complete("segmill train s --recipe ")


def test_zsh_is_answered_in_its_own_way():
    assert any("validate" in line for line in complete("segmill store v", "zsh"))


@pytest.mark.parametrize(
    ("verb", "option", "some"),
    [
        ("ingest", "--format", {"voc", "coco-instances"}),
        ("export", "--label-space", {"keep", "native", "voc-21"}),
        ("convert", "--to", {"camvid-11"}),
        ("train", "--method", {"unimatch", "supervised"}),
        ("train", "--recipe", {"streetscenes"}),
        ("train", "--val-split", {"val"}),
        ("label", "--model", {"run:", "hf:"}),
        ("label", "--runner", {"auto", "local", "ray"}),
        ("label", "--precision", {"fp32", "bf16", "fp16"}),
    ],
)
def test_values_are_completed_by_the_parameters_name(verb, option, some):
    command = typer.main.get_command(completion.root(verb)).commands[verb]
    parameter = next(p for p in command.params if option in p.opts)
    context = command.make_context(verb, [], resilient_parsing=True)
    found = {item.value for item in parameter.shell_complete(context, "")}
    assert some <= found
    first = min(some)
    narrowed = {item.value for item in parameter.shell_complete(context, first)}
    assert first in narrowed
    assert all(value.startswith(first) for value in narrowed)


@pytest.fixture
def named_shell(monkeypatch):
    """Let the shell be an argument: a test has no shell above it."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")


def test_a_script_is_shown_for_a_shell(capsys, named_shell):
    with pytest.raises(SystemExit, match="0"):
        main(["--show-completion", "fish"])
    assert "_SEGMILL_COMPLETE=complete_fish" in capsys.readouterr().out


def test_it_is_installed_into_the_shells_own_files(tmp_path, named_shell):
    subprocess.run(
        [sys.executable, "-m", "jobs", "--install-completion", "bash"],
        capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    script = tmp_path / ".bash_completions/segmill.sh"
    assert "complete -o default -F" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def test_completing_imports_nothing_heavy():
    code = (
        "import sys; from jobs.completion import root; root('label'); "
        "print([m for m in ('torch', 'ray', 'cv2', 'pyarrow.dataset') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.strip() == "[]"

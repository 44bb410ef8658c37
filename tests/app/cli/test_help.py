"""Help, version and completion: whole, true to the schemas, and without what takes seconds to import."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import typer
from typer.testing import CliRunner

from app.cli import generate, score
from app.cli.main import COMMANDS, cli, loaded
from app.cli.options import MODEL_ERRORS, bounds
from app.continuations.schemas import ContinueForm
from app.scores.schemas import ScoreForm
from app.server.schemas import Form
from app.settings import Settings
from model.codec.config import CodecConfig, SourceFilterConfig
from model.training.configs import (
    CodecTraining,
    DecoderTraining,
    LMTraining,
    Shares,
    SourceFilterTraining,
    TokenSettings,
    Windows,
)  # fmt: skip

HEAVY = ("torch", "numba", "llvmlite", "fastapi", "starlette", "uvicorn", "av", "soundfile", "numpy")
ALL = (
    "", "serve", "continue", "score", "train", "train codec", "train decoder", "train lm", "train track", "eval",
    "bench", "export", "config", "config show", "config validate",
)  # fmt: skip


def shown(command: str) -> str:
    result = CliRunner().invoke(cli, [*command.split(), "--help"], env={"COLUMNS": "80"}, prog_name="whisper-gpt")
    assert result.exit_code == 0, result.output
    return result.output


def words(text: str) -> str:
    return " ".join(text.split())


def flags(command: str) -> list[str]:
    """Every option that a command declares."""
    first, *rest = command.split()
    found = loaded(first)
    for name in rest:
        found = found.commands[name]
    return [name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts) if "-" in name]


@pytest.mark.parametrize("command", ALL)
def test_help_fits_a_terminal_and_cuts_no_name(command: str) -> None:
    text = shown(command)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and not re.search(r"\w\.\.\.$", text, re.M)
    assert "Exit codes: 0 done" in text and "130 stopped" in text
    if command and command not in ("train", "config"):
        names = flags(command)
        assert names
        for name in names:
            assert re.search(rf"^  (\S+, |.* / )?{re.escape(name)}([\s,]|$)", text, re.M), name


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    for name, (_, line) in COMMANDS.items():
        assert (loaded(name).help or "").split("\n")[0] == line, name


@pytest.mark.parametrize("command", [f"{command} --help".strip() for command in ALL] + ["--version"])
def test_help_imports_nothing_that_computes(command: str) -> None:
    """In a process of its own, as a shell would run it. What it costs is told by -X importtime, not by a clock here."""
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from app.cli.__main__ import main\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "form", "left_out"),
    [("continue", ContinueForm, generate.NOT_OPTIONS), ("score", ScoreForm, score.NOT_OPTIONS)],
)
def test_every_field_of_a_form_is_an_option_with_its_help(
    command: str, form: type[Form], left_out: tuple[str, ...]
) -> None:
    assert set(left_out) < set(form.model_fields)
    names, text = flags(command), words(shown(command))
    for name, field in form.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        if name in left_out:
            continue
        assert option in names
        assert field.description and field.description in text, name
        assert not bounds(field) or f"[{bounds(field)}]" in text


def test_a_new_field_of_a_form_is_an_option() -> None:
    """One field more is one option more: what `min_p`, say, will cost."""
    from typing import Annotated

    from pydantic import Field

    from app.cli.options import form_options

    class More(ContinueForm):
        min_p: Annotated[float, Field(ge=0, lt=1, description="tokens below this share of the likeliest")] = 0.0

    seen: list[More] = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @form_options(More, leave_out=generate.NOT_OPTIONS)
    def command(form: More) -> None:
        seen.append(form)

    assert CliRunner().invoke(app, ["--min-p", "0.25", "--seed", "3"]).exit_code == 0
    assert (seen[0].min_p, seen[0].seed, seen[0].seconds) == (0.25, 3, 5.0)
    text = words(CliRunner().invoke(app, ["--help"]).output)
    assert "tokens below this share of the likeliest [0 or more, below 1]" in text
    refused = CliRunner().invoke(app, ["--min-p", "1"]).exception
    assert "min_p: Input should be less than 1" in str(refused)


def test_ranges_in_words() -> None:
    expected = {
        "seconds": "0.1 or more", "temperature": "0 to 2", "top_p": "above 0, at most 1", "include_prompt": "",
        "seed": "0 to 9223372036854775807", "prompt_end": "above 0, at most 86400",
    }  # fmt: skip
    assert {name: bounds(ContinueForm.model_fields[name]) for name in expected} == expected


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("codec", (SourceFilterConfig, SourceFilterTraining)),
        ("seanet", (CodecConfig, CodecTraining)),
        ("decoder", (DecoderTraining,)),
        ("lm", (LMTraining, TokenSettings)),
    ],
)
def test_every_training_setting_is_an_option_with_help(command: str, kinds: tuple[type, ...]) -> None:
    text = words(shown(f"train {command}"))
    names = flags(f"train {command}")
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if field.type in (Shares, Windows):
                continue  # a table, which makes no option
            assert f"--{field.name.replace('_', '-')}" in names, field.name
            if field.name != "seed":  # of two settings of that name, the first one's help is shown
                (note,) = field.type.__metadata__  # type: ignore[union-attr]
                assert note in text, field.name


def test_every_setting_is_a_flag_of_serve_with_its_help() -> None:
    text = words(shown("serve"))
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text, name
        assert field.description is not None and field.description in text, name


def test_errors_that_are_told_in_one_line_exist() -> None:
    """They are named by text, so that no error costs an import."""
    for module, name in MODEL_ERRORS:
        assert issubclass(getattr(import_module(module), name), Exception)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("whisper-gpt sc", ["score"]),
        ("whisper-gpt train ", ["codec", "decoder", "lm", "seanet", "track"]),
        ("whisper-gpt continue --prompt-", ["--prompt-end", "--prompt-start"]),
        ("whisper-gpt score --normalise-by ", ["alone", "unigram"]),
        ("whisper-gpt train lm --preset gpt", ["gpt-l", "gpt-s"]),
    ],
)
def test_a_shell_completes(line: str, expected: list[str]) -> None:
    """What bash asks for when the user presses Tab."""
    given = line.split(" ")
    environment = os.environ | {
        "_WHISPER_GPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(given) - 1)
    }  # fmt: skip
    code = "import sys; sys.argv[0] = 'whisper-gpt'; from app.cli.__main__ import main; main()"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert sorted(run.stdout.split()) == expected, run.stderr

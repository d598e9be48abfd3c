"""Completion, as the shells themselves do it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import bulkfetch

_BASH = """
source ./script
COMP_WORDS=({words} "{last}")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_bulkfetch
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(params=["bash", "fish"])
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """Return what a shell offers for a line that is begun, where a file and a directory lie."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"this machine has no {shell}")
    (tmp_path / "script").write_text(bulkfetch("completion", shell).out)
    (tmp_path / "patients.csv").touch()
    (tmp_path / "archive").mkdir()

    def completed(line: str) -> set[str]:
        if shell == "fish":
            script = f"source ./script; complete -C '{line}'"
        else:
            words, _, last = line.rpartition(" ")
            script = _BASH.format(words=words, last=last)
        done = subprocess.run(
            [shell, "-c", script], cwd=tmp_path, capture_output=True, check=True, text=True,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        return {offer.partition("\t")[0].rstrip("/ ") for offer in done.stdout.splitlines()}

    return completed


def test_commands_options_words_and_files_are_offered(complete: object) -> None:
    assert callable(complete)
    assert complete("bulkfetch ver") == {"verify"}
    assert {"download", "manifest", "completion"} <= complete("bulkfetch ")
    assert complete("bulkfetch manifest ") >= {"build", "check", "split"}
    assert complete("bulkfetch download --query") == {"--query-concurrency"}
    assert complete("bulkfetch manifest build --since") == {"--since", "--since-last"}
    assert complete("bulkfetch download --progress ") == {"auto", "bar", "plain", "none"}
    assert complete("bulkfetch download --environment st") == {"staging"}
    assert complete("bulkfetch download --side ") == {"FRONT", "BACK"}
    assert "patients.csv" in complete("bulkfetch download pat")
    assert complete("bulkfetch download --out a") == {"archive"}
    assert complete("bulkfetch completion z") == {"zsh"}


def test_zsh_takes_what_is_made_for_it(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("this machine has no zsh")
    (tmp_path / "_bulkfetch").write_text(bulkfetch("completion", "zsh").out)
    script = (
        f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; "
        "print ${_comps[bulkfetch]}; autoload +X _bulkfetch && zsh -n $functions_source[_bulkfetch]"
    )
    done = subprocess.run(["zsh", "-fc", script], capture_output=True, check=True, text=True)
    assert (done.stdout, done.stderr) == ("_bulkfetch\n", "")


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    result = bulkfetch("completion", "elvish")
    assert result.status == 2
    assert "'bash', 'zsh', 'fish'" in result.err

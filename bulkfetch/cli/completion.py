"""`bulkfetch completion`: what makes a shell complete commands, options, their words and files."""

from __future__ import annotations

from collections.abc import Sequence

from bulkfetch.cli.options import command_parser
from bulkfetch.cli.parser import Parser

_SHELLS = ("bash", "zsh", "fish")


def command_line() -> Parser:
    """Return what reads this command's command line."""
    parser = command_parser(
        "completion",
        "Print what makes a shell complete this program's commands, options and files.",
        [
            "source <(bulkfetch completion bash)     # in ~/.bashrc",
            "bulkfetch completion zsh > ~/.zfunc/_bulkfetch     # with ~/.zfunc in $fpath",
            "bulkfetch completion fish > ~/.config/fish/completions/bulkfetch.fish",
        ],
        arguments="SHELL",
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))
    return parser


def run(argv: Sequence[str]) -> int:
    """Print a shell's completion."""
    given = command_line().parse_args(argv)
    import shtab  # noqa: PLC0415  what reads the other commands' options takes its time

    from bulkfetch.cli.whole import whole_command_line  # noqa: PLC0415  the same

    print(shtab.complete(whole_command_line(brief=True), given.shell))
    return 0

"""The command `embcomp`: each part of the library that has commands of its own adds them here."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from embcomp.extras import install

_PARTS: dict[str, tuple[str, str, str]] = {
    "choose": ("embcomp.planner.cli", "planner", "turn a byte budget into a method and a size for every table"),
    "graphhash": ("embcomp.graph.cli", "graph", "cluster users and items that click together"),
    "plan": ("embcomp.torchrec.cli", "torchrec", "estimate memory and traffic of sharded training, without a GPU"),
    "semantic-ids": ("embcomp.semantic_ids.cli", "semantic", "turn content vectors into codes"),
    "serve-behaviors": ("embcomp.sdim.cli", "serving", "serve a behavior store over HTTP"),
}
"""For each command the module that holds its typer `app`, the extra that this module needs, and a description."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `embcomp COMMAND ...`. Exit with code 2 and a message if an extra is missing or the input is bad.

    Only the module of the command that is asked for is imported; `--help` and `--version` need torch alone.

    Args:
        argv: the words after the program's name; by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        sys.exit(2)
    given = parser.parse_args(argv)
    module, extra, _ = _PARTS[given.command]
    try:
        app = import_module(module).app
    except ImportError as error:
        remedy = install(extra)
        text = str(error) if remedy in str(error) else f"{error}: {remedy}"
        print(f"embcomp {given.command}: {text}", file=sys.stderr)
        sys.exit(2)
    app(args=given.arguments, prog_name=f"embcomp {given.command}")


def _parser() -> argparse.ArgumentParser:
    from embcomp import __version__

    parser = argparse.ArgumentParser(
        prog="embcomp",
        description="Small embedding tables for recommender models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<17} {text} (extra {extra})" for name, (_, extra, text) in _PARTS.items()),
                "\n`embcomp COMMAND --help` shows the options of a command.",
            ]
        ),
    )
    parser.add_argument("--version", action="version", version=f"embcomp {__version__}")
    parser.add_argument("command", choices=_PARTS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    return parser

"""The command `embcomp`: each part of the library that has commands of its own adds them here."""

import sys
from importlib import import_module

_PARTS: dict[str, tuple[str, str]] = {
    "graphhash": ("embcomp.graph.cli", "graph"),
    "plan": ("embcomp.torchrec.cli", "torchrec"),
    "serve-behaviors": ("embcomp.sdim.cli", "serving"),
    "semantic-ids": ("embcomp.semantic_ids.cli", "semantic"),
}
"""Command -> the module whose `app` it is, and the extra that the module needs."""


def main() -> None:
    """Run `embcomp COMMAND ...`. Exit code 2, and a message, where an extra is missing or the input is bad."""
    try:
        import typer
    except ModuleNotFoundError:
        text = "embcomp: the command line needs typer: pip install 'embcomp[graph]', or semantic, or serving"
        print(text, file=sys.stderr)
        sys.exit(2)
    app = typer.Typer(no_args_is_help=True, help="Small embedding tables for recommender models.")

    @app.callback()
    def _root() -> None:
        """Keeps a single command a subcommand."""

    wanted = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    # The part that is asked for, so that no command waits for what another one imports; all for the overview.
    for name, (module, extra) in {wanted: _PARTS[wanted]}.items() if wanted in _PARTS else _PARTS.items():
        try:
            part = import_module(module)
        except ModuleNotFoundError as error:
            if wanted == name:
                print(f"embcomp {name}: {error}: pip install 'embcomp[{extra}]'", file=sys.stderr)
                sys.exit(2)
            continue
        commands = part.app.registered_commands
        if len(commands) == 1 and part.app.registered_callback is None:  # a part of one command is that command
            app.command(name)(commands[0].callback)
        else:
            app.add_typer(part.app, name=name)
    app()

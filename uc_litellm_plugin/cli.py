"""`uc-litellm`: the command line for operators. It reads the same settings as the proxy.

Exit codes: 0 ok; 1 refused, not found, or an audit found something; 2 wrong usage or settings;
3 the database cannot be reached or its schema is not as needed.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from . import serve
from .cli_accounts import credits, keys, users
from .cli_database import db
from .cli_explain import explain
from .cli_ledger import ledger
from .cli_levels import levels
from .cli_provider_keys import provider_keys
from .cli_vault import vault
from .console import REFUSED, USAGE, error_code, exit_code, print_error
from .errors import CommandRefused, UcError

# Typer carries its own copy of click since 0.26, an installed one before; this is the class of either.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# What Python makes of an argument's bytes that are not UTF-8 (PEP 383).
_NO_TEXT = re.compile("[\udc80-\udcff]")

app = typer.Typer(
    name="uc-litellm",
    help="Prepaid credits for the LiteLLM proxy: accounts, credits, API keys, the database, and the proxy itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name, group in (
    ("db", db), ("users", users), ("credits", credits), ("keys", keys), ("levels", levels), ("ledger", ledger),
    ("provider-keys", provider_keys), ("vault", vault),
):  # fmt: skip
    app.add_typer(group, name=name)


app.command("explain")(explain)


@app.command("serve")
def serve_command(
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A LiteLLM proxy configuration of your own.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 4000,
    num_workers: Annotated[int, typer.Option(min=1, max=256, help="Worker processes.")] = 1,
    demo: Annotated[bool, typer.Option(help="Open a demo account with credits and print a key for it.")] = True,
    extra: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS]", help="Passed on to `litellm`.")] = None,
) -> None:
    """Start the database, make what is missing, and run the LiteLLM proxy until Ctrl-C."""
    options = serve.Options(host, port, num_workers, config, demo, tuple(extra or ()))
    raise typer.Exit(asyncio.run(serve.serve(options)))


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; expected errors are one message on stderr, no traceback."""
    arguments = list(sys.argv[1:] if args is None else args)
    sys.exit(_run(arguments, as_json="--json" in arguments))


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        _require_text(arguments)
        return app(arguments, prog_name="uc-litellm", standalone_mode=False) or 0
    except UcError as error:
        print_error(str(error), error_code(error), as_json)
        return exit_code(error)
    except _UsageError as error:
        print_error(_usage(error), "usage", as_json)
        return USAGE
    except typer.Abort:
        return REFUSED


def _require_text(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if _NO_TEXT.search(argument):
            raise CommandRefused(f"{argument[:80]!a} is not text in UTF-8.", code="invalid_text")


def _usage(error: Exception) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message} `uc-litellm --help` lists the commands, and --help after one its options."

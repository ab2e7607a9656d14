"""The command `embcomp serve-behaviors`."""

from __future__ import annotations

import ipaddress
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from embcomp.sdim.encoder import BehaviorEncoder
from embcomp.sdim.errors import StoreError
from embcomp.sdim.service import create_app
from embcomp.sdim.store import BehaviorStore

app = typer.Typer(add_completion=False)

TOKEN = "EMBCOMP_TOKEN"


@app.command()
def serve_behaviors(
    store: Annotated[str, typer.Argument(help="A folder (LMDB), or redis://host:port/db.")],
    encoder: Annotated[Path, typer.Argument(help="A file written by BehaviorEncoder.save.")],
    host: Annotated[str, typer.Option(help=f"The address; beyond loopback set {TOKEN}.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8360,
    max_events: Annotated[int, typer.Option(help="The most events kept per user.")] = 1024,
    dtype: Annotated[str, typer.Option(help="The dtype of stored sums: float32, float16, int8.")] = "float32",
    max_bytes: Annotated[int | None, typer.Option(min=1, help="The most bytes of a folder; 64 GiB by default.")] = None,
    reencode: Annotated[bool, typer.Option(help="Take over a store that another model wrote.")] = False,
) -> None:
    """Serve a behavior store over HTTP."""
    token = os.environ.get(TOKEN) or None
    try:
        if token is None and not _loopback(host):
            raise ValueError(f"--host {host} is open to others: put a token into {TOKEN}, or serve on 127.0.0.1")
        if max_bytes is not None and "://" in store:
            raise ValueError("--max-bytes is for folders: a server has its own limit (maxmemory)")
        size = {} if max_bytes is None else {"max_bytes": max_bytes}
        loaded = BehaviorEncoder.load(encoder)
        opened = BehaviorStore(store, loaded, max_events=max_events, dtype=dtype, reencode=reencode, **size)
    except (ValueError, OSError, StoreError) as error:
        typer.echo(f"embcomp serve-behaviors: {error}", err=True)
        raise typer.Exit(2) from None
    with opened:
        if reencode:
            opened.reencode_in_background().add_done_callback(_report)
        uvicorn.run(create_app(opened, token=token), host=host, port=port, access_log=False)


def _report(work: Future[int]) -> None:
    error = work.exception()
    typer.echo(f"re-encoding stopped: {error}" if error else f"{work.result()} users were re-encoded", err=True)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

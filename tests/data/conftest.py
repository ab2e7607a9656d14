"""A small data set of every kind of column beside the rows it was made from, and a server to download from."""

import http.server
import threading

import numpy as np
import polars as pl
import pytest

import data
from data import encode

SCHEMA = {
    "label": "label",
    "group": "user",
    "dense": ["price", "age"],
    "columns": ["row"],
    "features": {
        "user": {"ids": 50},
        "tags": {"ids": 30, "multi_hot": True},
        "item": {"ids": 2**40},
        "more": {"ids": 7, "multi_hot": True},
    },
}


def make_rows(number: int, seed: int = 0) -> pl.DataFrame:
    """Rows whose ids lie inside SCHEMA; `row` numbers them."""
    rng = np.random.default_rng(seed)

    def bags(size: int, longest: int) -> list[list[int]]:
        return [rng.integers(size, size=rng.integers(longest + 1)).tolist() for _ in range(number)]

    return pl.DataFrame(
        {
            "row": np.arange(number),
            "label": rng.integers(2, size=number),
            "user": rng.integers(50, size=number),
            "item": rng.integers(2**40, size=number),
            "tags": pl.Series(bags(30, 4), dtype=pl.List(pl.Int64)),
            "more": pl.Series(bags(7, 1), dtype=pl.List(pl.Int64)),
            "price": rng.random(number),
            "age": rng.random(number),
        }
    )


@pytest.fixture
def make_clicks(tmp_path, monkeypatch):
    """(number of train rows, rows per chunk) -> (ClickData, raw train rows)."""

    def make(number: int, chunk_rows: int = 64) -> tuple[data.ClickData, pl.DataFrame]:
        monkeypatch.setattr(encode, "CHUNK_ROWS", chunk_rows)
        folder = tmp_path / f"source-{number}-{chunk_rows}"
        folder.mkdir()
        rows = make_rows(number)
        for split, part in {"train": rows, "valid": rows.head(3), "test": rows.head(2)}.items():
            part.write_parquet(folder / f"{split}.parquet")
        return data.load("parquet", folder=folder, cache=tmp_path / "cache", schema=SCHEMA), rows

    return make


class Server(http.server.ThreadingHTTPServer):
    """Sends `files`; breaks off each answer after `breaks` bytes; answers `statuses` first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.breaks, self.statuses = True, None, []
        self.requests: list[str | None] = []

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        body = self.server.files.get(self.path)
        if self.server.statuses or body is None:
            self.send_error(self.server.statuses.pop(0) if self.server.statuses else 404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest if self.server.breaks is None else rest[: self.server.breaks])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()

"""A behavior store over HTTP: append, fetch, pool and score. It needs the extra `serving`."""

from __future__ import annotations

import hmac
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from embcomp.extras import install

try:
    import numpy as np
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
    from pydantic import BaseModel, ConfigDict
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the service needs {error.name}: {install('serving')}") from error

from embcomp.sdim.errors import StampMismatch, StoreError, StoreFull, StoreUnavailable
from embcomp.sdim.store import BehaviorStore, item_ids

Scorer = Callable[[Tensor, Tensor], Tensor]
"""A function of candidates float [C, D] and their histories float [C, D] that returns scores [C]."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The sizes that one request may have; a larger one is answered with 413."""

    body_bytes: int = 1 << 20
    items: int = 10_000
    users: int = 256
    candidates: int = 10_000


class Append(BaseModel):
    """The events of users in the order of time; a request repeated with the same `token` counts once."""

    model_config = ConfigDict(extra="forbid", strict=True)
    events: dict[str, list[int]]
    token: str | None = None


class Fetch(BaseModel):
    """The users whose buckets are requested."""

    model_config = ConfigDict(extra="forbid", strict=True)
    users: list[str | int]


class Candidates(BaseModel):
    """A user and the items to pool the user's history for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user: str | int
    candidates: list[int]


def dot_product(candidates: Tensor, histories: Tensor) -> Tensor:
    """Return the dot product of each candidate with its pooled history, the scorer if no model is given."""
    return (candidates * histories).sum(-1)


def create_app(
    store: BehaviorStore, *, scorer: Scorer = dot_product, token: str | None = None, limits: Limits | None = None
) -> FastAPI:
    """Make the service, an ASGI application for `uvicorn` or any other server.

    Args:
        store: the behavior store to serve; the app does not close it.
        scorer: the rest of the model, for `/v1/score`.
        token: the bearer token required on every request except `/health` (`Authorization: Bearer ...`), or None.
        limits: the sizes that one request may have.

    Example:
        >>> import torch
        >>> from embcomp.sdim import SDIM, BehaviorEncoder, BehaviorStore
        >>> encoder = BehaviorEncoder(SDIM(16), torch.nn.Embedding(1000, 16), version="1")
        >>> with BehaviorStore("behaviors", encoder) as store:
        ...     app = create_app(store)  # uvicorn.run(app, port=8360)
        >>> sorted(path for path in app.openapi()["paths"])
        ['/health', '/metrics', '/v1/append', '/v1/fetch', '/v1/pool', '/v1/score']
    """
    limits = limits or Limits()
    metrics = _Metrics()
    app = FastAPI(title="embcomp behaviors", description="Histories of users, as bucket sums of SDIM.")
    app.add_middleware(_Guard, token=token, max_body=limits.body_bytes, metrics=metrics)
    for kind, status in ((StampMismatch, 409), (StoreFull, 507), (StoreUnavailable, 503), (StoreError, 500)):
        app.add_exception_handler(kind, _answer(status))
    for kind in (ValueError, IndexError):
        app.add_exception_handler(kind, _answer(422))

    @app.post("/v1/append")
    def append(body: Append) -> dict[str, dict[str, int]]:
        """Add events, and answer with the number of events kept for each user."""
        total = sum(map(len, body.events.values()))
        _check(total, limits.items, "items")
        _check(len(body.events), limits.users, "users")
        held = store.append_many(body.events, token=body.token)  # pyright: ignore[reportArgumentType]
        metrics.events.inc(total)
        return {"held": {str(user): number for user, number in held.items()}}

    @app.post("/v1/fetch", response_class=Response)
    def fetch(body: Fetch) -> Response:
        """Return buckets: an .npz with `sums` float32 [B, groups, 2^hash_width, D] and `counts`."""
        _check(len(body.users), limits.users, "users")
        buckets = store.fetch(body.users)
        return _npz(sums=buckets.sums, counts=buckets.counts)

    @app.post("/v1/pool", response_class=Response)
    def pool(body: Candidates) -> Response:
        """Pool the history for each candidate: an .npz with `vectors` and `histories`, float32 [C, D]."""
        vectors, histories = _pooled(body)
        return _npz(vectors=vectors, histories=histories)

    @app.post("/v1/score")
    def score(body: Candidates) -> dict[str, list[float]]:
        """Return one score for each candidate, in their order."""
        return {"scores": _scored(scorer, *_pooled(body))}

    @app.get("/health")
    def health() -> dict[str, str]:
        """Answer whether the store responds and holds this model."""
        store.check()
        return {"status": "ok", "model": store.encoder.stamp}

    @app.get("/metrics", response_class=Response)
    def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @torch.no_grad()
    def _pooled(body: Candidates) -> tuple[Tensor, Tensor]:
        _check(len(body.candidates), limits.candidates, "candidates")
        _, vectors = store.encoder(item_ids(body.candidates))
        candidates = torch.from_numpy(vectors)
        return candidates, store.encoder.sdim.query(candidates.unsqueeze(0), store.fetch([body.user])).squeeze(0)

    return app


@torch.no_grad()
def _scored(scorer: Scorer, vectors: Tensor, histories: Tensor) -> list[float]:
    """Return the scores; an error of the scorer becomes a RuntimeError, since the request is not at fault."""
    try:
        scores = scorer(vectors, histories)
    except (ValueError, IndexError) as error:
        raise RuntimeError(f"the scorer failed: {error}") from error
    if scores.shape != vectors.shape[:1]:
        raise HTTPException(500, f"the scorer gave {list(scores.shape)}, expected a score for each, [{len(vectors)}]")
    if not scores.isfinite().all():
        raise HTTPException(500, "the scorer gave a score that is not finite")
    return scores.tolist()


class _Metrics:
    """The Prometheus metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("embcomp_requests", "Answers", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("embcomp_request_seconds", "Time to answer", ["path"], registry=self.registry)
        self.events = Counter("embcomp_appended_events", "Events appended", registry=self.registry)


class _Guard:
    """A middleware that checks the token and the size of the body, and updates the metrics."""

    def __init__(self, app: Any, token: str | None, max_body: int, metrics: _Metrics) -> None:
        self.app, self.max_body, self.metrics = app, max_body, metrics
        self.wanted = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 500

        async def noting(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if not self._may(scope):
                refusal = JSONResponse({"detail": "a token is needed: Authorization: Bearer ..."}, 401)
                await refusal(scope, receive, noting)
            elif (body := await self._body(receive)) is None:
                refusal = JSONResponse({"detail": f"the body exceeds {self.max_body} bytes"}, 413)
                await refusal(scope, receive, noting)
            else:
                await self.app(scope, _once(body, receive), noting)
        finally:
            known = {getattr(route, "path", None) for route in scope["app"].routes}
            path = scope["path"] if scope["path"] in known else "other"  # anyone could make up labels
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - begin)

    def _may(self, scope: Any) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return self.wanted is None or scope["path"] == "/health" or hmac.compare_digest(given, self.wanted)

    async def _body(self, receive: Any) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def _once(body: bytes, receive: Any) -> Any:
    """Return a `receive` that yields a body that has been read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return messages.pop() if messages else await receive()

    return replay


def _answer(status: int) -> Any:
    headers = {"Retry-After": "1"} if status == 503 else None

    def handle(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status, headers)

    return handle


def _check(number: int, most: int, what: str) -> None:
    if number > most:
        raise HTTPException(413, f"{number} {what} in one request, at most {most} are taken: send several")


def _npz(**tensors: Tensor) -> Response:
    file = io.BytesIO()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return Response(file.getvalue(), media_type="application/octet-stream")

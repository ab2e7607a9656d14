"""The HTTP service: what it answers, refuses, limits and counts; the command that starts it."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import urllib.request

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from embcomp.sdim import BehaviorEncoder, BehaviorStore
from embcomp.sdim.cli import TOKEN, app
from embcomp.sdim.service import Limits, create_app
from recsys_models import BehaviorModel
from tests.sdim.writers import DIM, make_encoder


class Client:
    """Requests to an application in this process."""

    def __init__(self, app) -> None:
        self.transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def _send(self, method: str, path: str, **options) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options) -> httpx.Response:
        return self._send("GET", path, **options)

    def post(self, path: str, **options) -> httpx.Response:
        return self._send("POST", path, **options)


@pytest.fixture
def behaviors(tmp_path, encoder):
    with BehaviorStore(tmp_path / "store", encoder, max_bytes=2**17) as opened:
        yield opened


@pytest.fixture
def client(behaviors):
    return Client(create_app(behaviors))


def put(store: BehaviorStore, key: bytes, value: bytes) -> None:
    store._backend.update([key], lambda _: {key: value})


def arrays(response) -> dict[str, torch.Tensor]:
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content)) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_append_fetch_pool_and_score(client, behaviors):
    answer = client.post("/v1/append", json={"events": {"ann": [7, 42], "9": [1]}})
    assert answer.json() == {"held": {"ann": 2, "9": 1}}
    fetched = arrays(client.post("/v1/fetch", json={"users": ["ann", 9, "nobody"]}))
    expected = behaviors.fetch(["ann", "9", "nobody"])
    assert torch.equal(fetched["sums"], expected.sums)
    assert torch.equal(fetched["counts"], expected.counts)
    assert fetched["counts"][:, 0].sum(-1).tolist() == [2, 1, 0]

    body = {"user": "ann", "candidates": [7, 8, 9]}
    pooled = arrays(client.post("/v1/pool", json=body))
    vectors = behaviors.encoder.items(torch.tensor([7, 8, 9]))
    history = behaviors.encoder.items(torch.tensor([[7, 42]]))
    assert torch.equal(pooled["vectors"], vectors)
    torch.testing.assert_close(pooled["histories"], behaviors.encoder.sdim(vectors[None], history)[0])
    scores = client.post("/v1/score", json=body).json()["scores"]
    torch.testing.assert_close(torch.tensor(scores), (vectors * pooled["histories"]).sum(1))
    assert client.post("/v1/score", json={"user": "nobody", "candidates": [1]}).json() == {"scores": [0.0]}
    assert client.post("/v1/score", json={"user": "ann", "candidates": []}).json() == {"scores": []}


def test_a_model_scores(behaviors):
    torch.manual_seed(0)
    head = torch.nn.Linear(2 * DIM, 1)
    scorer = lambda candidates, histories: head(torch.cat((candidates, histories), 1)).squeeze(1)  # noqa: E731
    client = Client(create_app(behaviors, scorer=scorer))
    vectors = behaviors.encoder.items(torch.tensor([3]))
    expected = head(torch.cat((vectors, torch.zeros(1, DIM)), 1)).item()
    assert client.post("/v1/score", json={"user": "x", "candidates": [3]}).json()["scores"] == pytest.approx([expected])


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda candidates, histories: candidates[:, :1], r"gave [2, 1], expected a score for each, [2]"),
        (lambda candidates, histories: candidates[:, 0] * torch.nan, "not finite"),
        (
            lambda candidates, histories: [].index(1),
            "Internal Server Error",
        ),  # a ValueError, which bad requests are too
    ],
)
def test_a_scorer_that_fails_is_no_bad_request(behaviors, scorer, message):
    answer = Client(create_app(behaviors, scorer=scorer)).post("/v1/score", json={"user": "x", "candidates": [3, 4]})
    assert answer.status_code == 500
    assert message in answer.text


def test_a_repeated_request_counts_once(client, behaviors):
    for _ in range(2):
        assert client.post("/v1/append", json={"events": {"ann": [1]}, "token": "a"}).json() == {"held": {"ann": 1}}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("append", {"events": {"ann": [5_000]}}, 422, "item 5000 is out of range"),
        ("append", {"events": {"ann": [2**63]}}, 422, ""),
        ("append", {"events": {"ann": [1.5]}}, 422, "integer"),
        ("append", {"events": {"ann": ["1"]}}, 422, "integer"),
        ("append", {"events": {"": [1]}}, 422, "user"),
        ("append", {"event": {}}, 422, "event"),
        ("append", {"events": {"ann": [1] * 21}}, 413, "21 items"),
        ("append", {"events": {user: [1] for user in "abcde"}}, 413, "5 users"),
        ("fetch", {"users": ["a"] * 5}, 413, "5 users"),
        ("fetch", {"users": [None]}, 422, ""),
        ("score", {"user": "ann", "candidates": [1] * 31}, 413, "31 candidates"),
        ("score", {"user": "ann", "candidates": [-1]}, 422, "item -1"),
        ("pool", {"user": "ann", "candidates": [2**80]}, 422, ""),
        ("fetch", {"users": ["x" * 3_000]}, 413, "exceeds 2000 bytes"),
    ],
)
def test_bad_requests(behaviors, path, body, status, message):
    limits = Limits(body_bytes=2_000, items=20, users=4, candidates=30)
    client = Client(create_app(behaviors, limits=limits))
    behaviors.append("ann", [1])
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert behaviors.events("ann") == [1]


def test_large_bodies_of_unknown_length_are_cut_off(behaviors):
    client = Client(create_app(behaviors, limits=Limits(body_bytes=2_000)))

    async def body():
        for _ in range(20):
            yield b" " * 500

    assert client.post("/v1/append", content=body()).status_code == 413


def test_errors_of_the_store_have_their_status(client, behaviors):
    statuses = {client.post("/v1/append", json={"events": {str(u): list(range(300))}}).status_code for u in range(30)}
    assert statuses == {200, 507}
    put(behaviors, b"u:0", b"?")
    answer = client.post("/v1/fetch", json={"users": ["0"]})
    assert (answer.status_code, "damaged" in answer.json()["detail"]) == (500, True)
    put(behaviors, b"stamp", b"model 2")
    for answer in (client.post("/v1/fetch", json={"users": ["1"]}), client.get("/health")):
        assert (answer.status_code, "holds 'model 2'" in answer.json()["detail"]) == (409, True)


def test_a_server_that_is_gone(redis_server, encoder):
    with BehaviorStore(redis_server.url, encoder, timeout=0.1) as store:
        client = Client(create_app(store))
        assert client.get("/health").json() == {"status": "ok", "model": encoder.stamp}
        redis_server.kill()
        answer = client.get("/health")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        redis_server.start()
        assert client.get("/health").status_code == 200


def test_the_token(behaviors):
    client = Client(create_app(behaviors, token="secret"))
    for headers in ({}, {"Authorization": "secret"}, {"Authorization": "Bearer secre"}):
        for call in (client.get("/metrics", headers=headers), client.post("/v1/append", json={}, headers=headers)):
            assert call.status_code == 401
    assert client.get("/health").status_code == 200
    assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_metrics(client):
    client.post("/v1/append", json={"events": {"ann": [1, 2]}})
    client.post("/v1/append", json={})
    client.post("/v1/append", content=b" " * (Limits().body_bytes + 1))
    client.get("/made/up")
    text = client.get("/metrics").text
    assert 'embcomp_requests_total{path="/v1/append",status="200"} 1.0' in text
    assert 'embcomp_requests_total{path="/v1/append",status="422"} 1.0' in text
    assert 'embcomp_requests_total{path="/v1/append",status="413"} 1.0' in text
    assert 'embcomp_requests_total{path="other",status="404"} 1.0' in text
    assert 'embcomp_request_seconds_count{path="/v1/append"} 3.0' in text
    assert "embcomp_appended_events_total 2.0" in text
    assert "made" not in text


def test_the_command_serves(tmp_path):
    """A process of its own, on a free port, killed in the end: what it acknowledged is there."""
    make_encoder().save(tmp_path / "encoder.pt")
    code = "import sys; from embcomp.cli import main; sys.argv[0] = 'embcomp'; main()"
    command = [sys.executable, "-c", code, "serve-behaviors", str(tmp_path / "store"), str(tmp_path / "encoder.pt")]
    options = ["--port", "0", "--max-bytes", str(2**20)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "running on" in line)
        url = next(word for word in line.split() if word.startswith("http"))
        assert url.startswith("http://127.0.0.1:")
        body, headers = b'{"events": {"ann": [1, 2]}}', {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/append", body, headers)) as answer:
            assert answer.read() == b'{"held":{"ann":2}}'
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    with BehaviorStore(tmp_path / "store", make_encoder()) as store:
        assert store.events("ann") == [1, 2]


def test_the_command_refuses(tmp_path, monkeypatch):
    encoder = tmp_path / "encoder.pt"
    make_encoder().save(encoder)
    monkeypatch.delenv(TOKEN, raising=False)
    run = lambda *words: CliRunner().invoke(app, [str(tmp_path / "store"), *map(str, words)])  # noqa: E731
    for words, message in (
        ((encoder, "--host", "0.0.0.0"), "open to others: put a token into EMBCOMP_TOKEN"),
        ((tmp_path / "missing.pt",), "missing.pt"),
        ((encoder, "--dtype", "int4"), "dtype must be one of"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert message in result.output
    with BehaviorStore(tmp_path / "store", make_encoder("2")):
        pass
    assert "holds '2, SDIM" in run(encoder).output
    shared = CliRunner().invoke(app, ["redis://127.0.0.1:1", str(encoder), "--max-bytes", "9"])
    assert (shared.exit_code, "--max-bytes is for folders" in shared.output) == (2, True)


def test_learned_weights_serve_and_the_rest_of_a_model_scores(tmp_path):
    """The scores are those of the model on the events themselves."""
    torch.manual_seed(0)
    model = BehaviorModel(torch.nn.Embedding(50, DIM), pooling="sdim", rule="kernel", num_hashes=12, hidden=[8])
    torch.nn.init.normal_(model.pooling.weight)
    encoder = BehaviorEncoder(model.pooling, model.items, "1")
    encoder.save(tmp_path / "encoder.pt")
    events, candidates = [3, 1, 4, 1, 5], [9, 2, 6]
    with BehaviorStore(tmp_path / "store", BehaviorEncoder.load(tmp_path / "encoder.pt")) as store:
        client = Client(create_app(store, scorer=model.head))
        client.post("/v1/append", json={"events": {"ann": events}})
        body = {"user": "ann", "candidates": candidates}
        scores = client.post("/v1/score", json=body).json()["scores"]
        with torch.no_grad():
            direct = model(torch.tensor([candidates]), torch.tensor([events]))
            pooled = model.pooling(model.items(torch.tensor([candidates])), model.items(torch.tensor([events])))
        torch.testing.assert_close(torch.tensor(scores), direct[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(arrays(client.post("/v1/pool", json=body))["histories"], pooled[0])

"""A Redis server of the tests' own, on a socket in a temporary folder; an encoder; a store on either backend."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NoConnection

from embcomp.sdim import BehaviorEncoder, BehaviorStore
from tests.sdim.writers import make_encoder


class Server:
    """`redis-server` on a socket, every write in its log before it is acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"unix://{folder}/redis.sock"
        self.start()

    def start(self) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            pytest.skip("needs redis-server or valkey-server on PATH (Debian: apt-get install redis-server)")
        options = {"port": 0, "unixsocket": f"{self.folder}/redis.sock", "dir": self.folder, "save": ""}
        options |= {"appendonly": "yes", "appendfsync": "always", "io-threads": 1}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        self.client = Redis.from_url(self.url)
        for _ in range(600):
            try:
                self.client.ping()
                return
            except NoConnection:
                time.sleep(0.05)
        raise TimeoutError("redis-server did not start")

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="redis-"))  # short: the address of a socket has at most 107 characters
    server = Server(folder)
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture(params=["lmdb", "redis"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "lmdb" else request.getfixturevalue("redis_server").url


@pytest.fixture
def encoder() -> BehaviorEncoder:
    return make_encoder()


@pytest.fixture
def store(location: str, encoder: BehaviorEncoder) -> Iterator[BehaviorStore]:
    with BehaviorStore(location, encoder, max_events=20) as opened:
        yield opened

"""Downloads from a server of our own that breaks off, knows no ranges, or sends something else."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from data import DataError
from data.fetch import download, fetch, unpack
from data.sources import Archive

BODY = bytes(range(256)) * 1024
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(server):
    server.files["/file"] = BODY
    return server


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_and_tells_how_far_it_is(server, tmp_path):
    told = []
    download(server.url(), tmp_path / "file", MD5, lambda *state: told.append(state))
    assert (tmp_path / "file").read_bytes() == BODY
    assert names(tmp_path) == ["file"]
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))


def test_goes_on_with_what_an_earlier_run_left(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    download(server.url(), tmp_path / "file", MD5)
    assert server.requests == ["bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == BODY


def test_goes_on_when_the_connection_breaks_off(server, tmp_path):
    server.breaks = 100_000
    download(server.url(), tmp_path / "file", MD5, pause=0)
    assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert (tmp_path / "file").read_bytes() == BODY


def test_starts_again_where_the_server_knows_no_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    download(server.url(), tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_part_that_is_complete(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY)
    download(server.url(), tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == BODY
    (tmp_path / "file.part").write_bytes(BODY + b"too much")
    download(server.url(), tmp_path / "file", MD5, pause=0)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("ranges", [True, False])
def test_gives_up_when_nothing_more_comes(server, tmp_path, ranges):
    server.breaks, server.ranges = (0 if ranges else 5000), ranges
    (tmp_path / "file.part").write_bytes(BODY[:5000])
    with pytest.raises(DataError, match=r"the connection broke off, 3 times; .*file\.part keeps the bytes received"):
        download(server.url(), tmp_path / "file", MD5, tries=3, pause=0)
    assert names(tmp_path) == ["file.part"]
    assert (tmp_path / "file.part").read_bytes() == BODY[:5000]


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DataError, match=rf"file: md5 is {MD5[4:]}, not 0000; it was removed"):
        download(server.url(), tmp_path / "file", "md5:0000")
    assert names(tmp_path) == []


def test_refusals_and_passing_faults(server, tmp_path):
    with pytest.raises(DataError, match="/nothing: the server answers 404 Not Found"):
        download(server.url("/nothing"), tmp_path / "file", MD5)
    assert len(server.requests) == 1
    server.statuses = [503, 429]
    download(server.url(), tmp_path / "file", MD5, pause=0)
    server.statuses = [500] * 9
    with pytest.raises(DataError, match="the server answers 500 Internal Server Error, 2 times"):
        download(server.url(), tmp_path / "other", MD5, tries=2, pause=0)


def test_no_server(tmp_path):
    with pytest.raises(DataError, match="2 times"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5, tries=2, pause=0)
    assert names(tmp_path) == []


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        link = tarfile.TarInfo("elsewhere")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


FILES = {"ml/a.txt": b"first", "../../b.txt": b"second", "ml/other.txt": b"third"}


@pytest.mark.parametrize(("pack", "ending"), [(zipped, "zip"), (tarred, "tar.gz")])
def test_fetch_unpacks_members_and_nothing_else(server, tmp_path, pack, ending):
    body = pack(FILES)
    server.files[f"/all.{ending}"] = body
    checksum = "sha256:" + hashlib.sha256(body).hexdigest()
    archive = Archive(server.url(f"/all.{ending}"), {"a.txt": None, "b.txt": None}, checksum, "")
    folder = tmp_path / "deep" / "er"
    assert fetch(archive, folder) == [folder / "a.txt", folder / "b.txt"]
    assert names(folder) == ["a.txt", "b.txt"]
    assert names(tmp_path) == ["deep"]
    assert names(tmp_path / "deep") == ["er"]
    assert (folder / "b.txt").read_bytes() == b"second"
    requests = len(server.requests)
    assert fetch(archive, folder) == []
    assert len(server.requests) == requests


def test_members_are_checked(server, tmp_path):
    server.files["/all.zip"] = zipped(FILES)
    right = "md5:" + hashlib.md5(b"first").hexdigest()
    archive = Archive(server.url("/all.zip"), {"a.txt": right, "b.txt": right}, None, "")
    with pytest.raises(DataError, match=r"b\.txt: md5 is .*; it was removed"):
        fetch(archive, tmp_path)
    assert names(tmp_path) == ["a.txt"]
    with pytest.raises(DataError, match=r"all\.zip holds no c\.txt"):
        fetch(Archive(server.url("/all.zip"), {"c.txt": None}, None, ""), tmp_path)


@pytest.mark.parametrize(("pack", "ending"), [(zipped, "zip"), (tarred, "tar.gz")])
def test_a_damaged_archive(tmp_path, pack, ending):
    path = tmp_path / f"all.{ending}"
    path.write_bytes(pack({"a.txt": bytes(10_000)})[:60])
    with pytest.raises(DataError, match=rf"all\.{ending} is damaged"):
        unpack(path, {"a.txt": None}, tmp_path)
    assert names(tmp_path) == [f"all.{ending}"]

import gzip

import polars as pl
import pytest

from data import DataError
from data.text import count_rows, scan_delimited, text_file

SCHEMA = {"a": pl.Int64, "b": pl.Float32, "c": pl.String}


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "rows.txt"
        path.write_bytes(text.encode())
        return path

    return write


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_fields(write, end):
    path = write(end.join(["1\t.5\tx y", "\t\t", '-3\t1e3\t"q']) + end)
    rows = scan_delimited(path, "\t", SCHEMA).collect()
    assert rows.rows() == [(1, 0.5, "x y"), (None, None, ""), (-3, 1000.0, '"q')]
    assert rows.schema == SCHEMA
    assert count_rows(path) == 3


def test_last_line_without_an_end(write):
    path = write("1::2::x\n2::3::y")
    assert scan_delimited(path, "::", SCHEMA).collect().height == count_rows(path) == 2


def test_header(write):
    path = write("a,b,c\n1,2,x\n")
    assert scan_delimited(path, ",", SCHEMA, header=True).collect().rows() == [(1, 2.0, "x")]
    assert count_rows(path, header=True) == 1
    with pytest.raises(DataError, match=r"rows.txt:1: the header is 'a,b,c', not 'b,a'"):
        scan_delimited(path, ",", {"b": pl.Int8, "a": pl.Int8}, header=True)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7\t1", r"rows.txt:20001: 2 fields, not 3"),
        ("7\t1\tx\t", r"rows.txt:20001: 4 fields, not 3"),
        ("", r"rows.txt:20001: 1 fields, not 3"),
        ("7.5\t1\tx", r"rows.txt:20001: a is '7.5', not Int64"),
        ("7\tone\tx", r"rows.txt:20001: b is 'one', not Float32"),
    ],
)
def test_malformed_line_is_named(write, line, message, streaming):
    path = write("1\t2\tx\n" * 20_000 + line + "\n" + "1\t2\tx\n" * 20_000)
    with pytest.raises(DataError, match=message):
        scan_delimited(path, "\t", SCHEMA).collect(engine="streaming" if streaming else "in-memory")


def test_order_is_that_of_the_lines(write):
    path = write("".join(f"{i}\t0\tx\n" for i in range(100_000)))
    batches = scan_delimited(path, "\t", SCHEMA).collect_batches(chunk_size=1000, maintain_order=True)
    assert pl.concat(batches)["a"].to_list() == list(range(100_000))


def test_gzipped_and_marked_files(tmp_path):
    text = "\ufeffa,b,c\r\n1,2,x\r\n".encode()
    for name, content in (("plain.csv", text), ("packed.csv", gzip.compress(text))):
        (tmp_path / name).write_bytes(content)
        assert scan_delimited(tmp_path / name, ",", SCHEMA, header=True).collect().rows() == [(1, 2.0, "x")]
        assert count_rows(tmp_path / name, header=True) == 1
    (tmp_path / "train.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf1\t2\tx\n"))
    path = text_file(tmp_path, "train.csv")
    assert path.name == "train.gz"
    assert scan_delimited(path, "\t", SCHEMA).collect().rows() == [(1, 2.0, "x")]
    assert text_file(tmp_path, "plain.csv").name == "plain.csv"
    assert text_file(tmp_path, "none.csv").name == "none.csv"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,caf\xe9\n1,2,x\n", r"rows\.csv:1: not UTF-8 \(byte 0xe9\); convert the file"),
        ("a,b,c\n1,2,x\n".encode("utf-16"), r"rows\.csv is UTF-16; convert the file by `iconv -f utf-16"),
        (b"PK\x03\x04...", r"rows\.csv is a zip archive; unpack it"),
    ],
)
def test_other_encodings_are_named(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        scan_delimited(tmp_path / "rows.csv", ",", SCHEMA, header=True)


def test_missing_file(tmp_path):
    for read in (lambda path: scan_delimited(path, ",", SCHEMA), count_rows):
        with pytest.raises(DataError, match=r"no file .*nowhere\.txt"):
            read(tmp_path / "nowhere.txt")

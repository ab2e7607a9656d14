"""The indexes of faiss and usearch over the same codes; only this module imports these libraries."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from embcomp.ops.packed_rows import pack_rows
from embcomp.ops.packing import bits_for
from embcomp.retrieval.forms import Form, GridForm, ProductForm


class Coded(Protocol):
    """The part of `VectorCodes` that is read here."""

    form: Form
    settings: dict[str, Any]

    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...


def to_faiss(codes: Coded) -> Any:
    """Return a faiss index that holds the same codes and finds the same neighbours.

    | codes | index | asked with | as `how` |
    |---|---|---|---|
    | signs (`levels=1`, `bits=1`, learned) | `IndexBinaryFlat` | `codes.signs(queries)` | "hamming" |
    | `bits` 4, 6 or 8, `scale` "column" or "table" | `IndexScalarQuantizer` | floats | "float query" |
    | product codes | `IndexPQ` | floats | "float query" |

    With a rotation, the index rotates queries itself (`IndexPreTransform`). Floats are compared by inner product; with
    metric "cosine" normalize them first.

    Raises:
        ImportError: faiss is missing.
        ValueError: no faiss index holds these codes; the text says what to change.
    """
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("to_faiss needs faiss: pip install faiss-cpu") from error
    form = codes.form
    if isinstance(form, ProductForm):
        parts, number, width = form.books.shape
        index = faiss.IndexPQ(parts * width, parts, bits_for(number), faiss.METRIC_INNER_PRODUCT)
        books = form.books.float().cpu()
        filled = torch.zeros(parts, 1 << bits_for(number), width)
        filled[:, :number] = books
        faiss.copy_array_to_vector(filled.flatten().numpy(), index.pq.centroids)
        index.is_trained = True
        _add(faiss, index, form.codes.data.cpu()[: len(codes) * index.pq.code_size], len(codes), index.pq.code_size)
        return _turning(faiss, index, form.basis)
    assert isinstance(form, GridForm)
    rows = torch.arange(len(codes), device=codes.device)
    read, (bits, *others) = form.codes.read(rows).cpu(), [bits for _, bits in form.codes.groups]
    if form.is_signs and form.levels == 1:
        if read.shape[1] % 8:
            raise ValueError(f"{read.shape[1]} signs do not fill whole bytes, which IndexBinaryFlat compares")
        index = faiss.IndexBinaryFlat(read.shape[1])
        index.add(pack_rows(read, 1).numpy())
        return index
    kinds = {4: "QT_4bit", 6: "QT_6bit", 8: "QT_8bit"}
    if others or bits not in kinds or form.scales is not None:
        raise ValueError(
            f"faiss holds no codes of {codes.settings}: its scalar quantizer takes bits 4, 6 or 8 with scale='column' "
            "or scale='table'; its binary index signs of one level"
        )
    index = faiss.IndexScalarQuantizer(
        read.shape[1], getattr(faiss.ScalarQuantizer, kinds[bits]), faiss.METRIC_INNER_PRODUCT
    )
    factor = form.basis.float().cpu() if form.basis.dim() == 1 else torch.ones(read.shape[1])
    highest = float((1 << bits) - 1)  # faiss decodes to least + (code + 1/2) / highest * spread
    trained = torch.stack([-factor * (highest / 2 + 0.5), factor * highest])
    faiss.copy_array_to_vector(trained.flatten().numpy(), index.sq.trained)
    index.is_trained = True
    _add(faiss, index, pack_rows(read, bits).reshape(-1), len(codes), index.sq.code_size)
    return _turning(faiss, index, form.basis if form.basis.dim() == 2 else None, form.width)


def to_usearch(codes: Coded) -> Any:
    """Return a usearch index over the same codes, key i for row i; exact with `index.search(..., exact=True)`.

    Signs become bits with the Hamming distance, to be queried with `codes.signs(queries).numpy()`. Grids of 2 to 7 bits
    with `scale="table"` and without rotation become integers of 8 bits with the inner product, to be queried with
    integers, too: the neighbours are those of the integers.

    Raises:
        ImportError: usearch is missing.
        ValueError: usearch does not hold these codes; the text says what to change.
    """
    try:
        from usearch.index import Index  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("to_usearch needs usearch: pip install usearch") from error
    form = codes.form
    if isinstance(form, GridForm):
        read = form.codes.read(torch.arange(len(codes), device=codes.device)).cpu()
        keys = torch.arange(len(codes)).numpy()
        if form.is_signs and form.levels == 1 and read.shape[1] % 8 == 0:
            index = Index(ndim=read.shape[1], metric="hamming", dtype="b1")
            index.add(keys, pack_rows(read, 1).numpy(), threads=1)
            return index
        bits = form.codes.groups[0][1]
        if form.scales is None and form.basis.dim() == 1 and bool((form.basis == form.basis[0]).all()) and 1 < bits < 8:
            index = Index(ndim=read.shape[1], metric="ip", dtype="i8")
            index.add(keys, (2 * read.to(torch.int16) - ((1 << bits) - 1)).to(torch.int8).numpy(), threads=1)
            return index
    raise ValueError(
        f"usearch holds no codes of {codes.settings}: it takes signs of one level (whole bytes of them), or bits "
        "2 to 7 with scale='table' and without rotation"
    )


def _add(faiss: Any, index: Any, packed: torch.Tensor, rows: int, code_size: int) -> None:
    index.add_sa_codes(packed.contiguous().view(rows, code_size).numpy())


def _turning(faiss: Any, index: Any, basis: torch.Tensor | None, width: int | None = None) -> Any:
    """The index behind the matrix that turns queries; a matrix also cuts queries to their first columns."""
    if basis is None:
        if width is None or width == index.d:
            return index
        basis = torch.eye(index.d, width)
    turn = faiss.LinearTransform(basis.shape[1], basis.shape[0], False)
    faiss.copy_array_to_vector(basis.float().cpu().flatten().numpy(), turn.A)
    turn.is_trained = True
    return faiss.IndexPreTransform(turn, index)

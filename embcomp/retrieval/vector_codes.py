"""Coded vectors: scores, exact search, rescoring, and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp import artifact
from embcomp.files import Damaged, StrPath
from embcomp.ops.code_search import Found, best_of
from embcomp.ops.packed_columns import PackedColumns, groups_nbytes
from embcomp.ops.packed_rows import pack_rows
from embcomp.retrieval.checks import check_candidates, check_device, check_k, check_matrix, check_version
from embcomp.retrieval.forms import Form, GridForm, ProductForm
from embcomp.retrieval.network import SignNetwork, beside, total

How = Literal["float query", "codes", "hamming"]
Metric = Literal["dot", "cosine"]
HOWS = ("float query", "codes", "hamming")
KIND = "vector codes"
_CODES = 1 << 22  # values that are decoded at a time
_FORMS: dict[str, type[GridForm] | type[ProductForm]] = {"grid": GridForm, "product": ProductForm}


class VectorCodes:
    """Vectors in few bits, from `embcomp.retrieval.compress` or `embcomp.retrieval.learn`.

    Attributes:
        form: the codes and constants.
        metric: "dot", or "cosine" if vectors and queries are normalized first.
        version: the stamp of the vectors: the user's string, or a checksum of the vectors.
        settings: the settings they were made with, as JSON values.
        network: the network that codes queries if the codes are learned, else None.

    Example:
        >>> import torch
        >>> from embcomp import retrieval
        >>> vectors = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
        >>> codes = retrieval.compress(vectors, bits=4)
        >>> codes.search(vectors[:3], k=1).rows.flatten().tolist(), codes.nbytes
        ([0, 1, 2], 10088)
    """

    def __init__(
        self,
        form: Form,
        *,
        metric: Metric,
        version: str,
        settings: Mapping[str, Any],
        network: SignNetwork | None = None,
    ) -> None:
        self.form, self.version, self.settings = form, version, dict(settings)
        self.metric: Metric = metric
        self.network = network

    def __len__(self) -> int:
        return self.form.rows

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"VectorCodes({len(self)} x {self.width}, {said}, {self.nbytes} bytes, version={self.version!r})"

    @property
    def width(self) -> int:
        """The number of values of a vector."""
        return self.form.width

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self.form.packed.data.device

    @property
    def nbytes(self) -> int:
        """The bytes of codes, sizes, matrices and code books, without the network of learned codes."""
        return self.form.nbytes

    def to(self, device: torch.device | str) -> VectorCodes:
        """Return a copy on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.form.tensors().items()}
        form = _with_tensors(self.form, moved)
        network = None if self.network is None else self.network.copied().to(device)
        return VectorCodes(form, metric=self.metric, version=self.version, settings=self.settings, network=network)

    def decode(self, rows: Tensor | None = None) -> Tensor:
        """Decode the vectors, float32 [n, width].

        Args:
            rows: the rows to decode, int64 [n]; by default all.
        """
        if rows is None:
            rows = torch.arange(len(self), device=self.device)
        return torch.cat([self.form.decode(block) for block in rows.split(max(1, _CODES // self.width))])

    def score(
        self, queries: Tensor, how: How = "float query", *, rows: Tensor | None = None, version: str | None = None
    ) -> Tensor:
        """Return the score of every row for every query.

        Args:
            queries: the queries, floats [Q, width], from the same model as the vectors.
            how: "float query" for products of queries with decoded vectors; "codes" to code queries in as many bits as
                the vectors; "hamming" to compare signs alone, without sizes: the number that agree minus the number
                that differ; each level of learned signs counts half as much as the one before.
            rows: the rows to score, int64 [n]; by default all.
            version: the stamp of the queries' model; it must equal that of the codes.

        Returns:
            The scores, float32 [Q, n].

        Raises:
            ValueError: queries have another width, dtype, device or version, or hold NaN, or the codes do not support
                `how`.
        """
        asked, scaled = self._asked(queries, how, version)
        if rows is None:
            rows = torch.arange(len(self), device=self.device)
        parts = rows.split(max(1, _CODES // self.form.packed.columns))
        return torch.cat([self.form.scores(asked, part, scaled) for part in parts], 1)

    def search(self, queries: Tensor, k: int, how: How = "float query", *, version: str | None = None) -> Found:
        """Return the k rows of largest score for each query: exact, in blocks, without a matrix of all scores.

        Args:
            queries: the queries, as in `score`.
            k: the number of results, 1 to the number of vectors.
            how: the kind of score, as in `score`.
            version: the stamp of the queries' model, as in `score`.

        Returns:
            The scores, float32 [Q, k], and rows, int64 [Q, k], best first, among equal scores the lower row.

        Raises:
            ValueError: k exceeds the number of vectors, or the same errors as from `score`.
        """
        check_k(k, len(self))
        asked, scaled = self._asked(queries, how, version)
        return self.form.search(asked, k, scaled)

    def rescore(
        self, queries: Tensor, candidates: Tensor, vectors: Tensor | VectorCodes, k: int | None = None, *,
        version: str | None = None,
    ) -> Found:  # fmt: skip
        """Order candidates by the vectors themselves, or by codes of them with more bits.

        Args:
            queries: the queries, floats [Q, width].
            candidates: the rows that `search` found, integers [Q, n].
            vectors: the vectors, floats [rows, width], or codes of the same vectors in more bits.
            k: the number of results; by default all.
            version: the stamp of the model of queries and vectors.

        Returns:
            The scores and rows, as in `search`.

        Raises:
            ValueError: queries are invalid as in `score`, vectors have another number, width or version, or k exceeds
                the candidates.
            IndexError: a candidate is out of range.
        """
        queries = self._queries(queries, version)
        candidates = check_candidates(candidates, len(queries), len(self)).to(self.device)
        k = candidates.shape[1] if k is None else k
        check_k(k, candidates.shape[1])
        if isinstance(vectors, VectorCodes):
            check_version(vectors.version, self.version, "vectors")
            if len(vectors) != len(self) or vectors.width != self.width:
                got = f"{len(vectors)} x {vectors.width}"
                raise ValueError(f"vectors are {got}, the codes {len(self)} x {self.width}: code the same vectors")
            candidate_vectors = vectors.decode(candidates.reshape(-1))
        else:
            rows = candidates.reshape(-1).to(vectors.device) if isinstance(vectors, Tensor) else candidates
            if isinstance(vectors, Tensor) and vectors.dim() == 2 and len(vectors) != len(self):
                raise ValueError(
                    f"there are {len(vectors)} vectors, and codes of {len(self)}: give those that were coded"
                )
            chosen = vectors[rows] if isinstance(vectors, Tensor) and vectors.dim() == 2 else vectors
            candidate_vectors = check_matrix(chosen, "vectors", self.width, self.metric == "cosine").to(self.device)
        if self.metric == "cosine":
            candidate_vectors = F.normalize(candidate_vectors)
        scores = (candidate_vectors.view(*candidates.shape, -1) @ queries.unsqueeze(2)).squeeze(2)
        return best_of(scores, candidates, k)

    def signs(self, queries: Tensor) -> Tensor:
        """Return queries for a binary index as packed signs, uint8 [Q, bytes], to search the index of `to_faiss`.

        Raises:
            ValueError: the same errors as from `score` with "hamming".
        """
        asked, _ = self._asked(queries, "hamming", None)
        if self.form.packed.columns % 8:
            raise ValueError(f"{self.form.packed.columns} signs do not fill whole bytes, which binary indexes compare")
        return pack_rows((asked > 0).to(torch.uint8), 1)

    def to_faiss(self) -> Any:
        """Return a faiss index with the same codes and neighbours; see `embcomp.retrieval.indexes.to_faiss`."""
        from embcomp.retrieval.indexes import to_faiss

        return to_faiss(self)

    def to_usearch(self) -> Any:
        """Return a usearch index over the same codes; see `embcomp.retrieval.indexes.to_usearch`."""
        from embcomp.retrieval.indexes import to_usearch

        return to_usearch(self)

    def save(self, path: StrPath) -> None:
        """Write one safetensors file with a checksum. An existing file is replaced in one step or not at all."""
        name = next(name for name, kind in _FORMS.items() if isinstance(self.form, kind))
        header = {
            "form": name, "rows": len(self), "width": self.width, "groups": self.form.packed.groups,
            "metric": self.metric, "version": self.version, "settings": self.settings,
            "levels": self.form.levels if isinstance(self.form, GridForm) else 1,
        }  # fmt: skip
        tensors = dict(self.form.tensors())
        if self.network is not None:
            header["network"] = self.network.config()
            tensors |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        artifact.save(path, KIND, header, tensors)

    @staticmethod
    def load(path: StrPath, version: str | None = None) -> VectorCodes:
        """Read codes that `save` wrote.

        Args:
            path: the file.
            version: the stamp that the codes must have; None accepts any.

        Raises:
            Damaged: the file is cut short, was changed, or is not one of embcomp's; the text names it.
            ValueError: the file is of another kind, or the codes have another version.
            FileNotFoundError: there is no such file.

        Example:
            >>> import torch
            >>> from embcomp import retrieval
            >>> codes = retrieval.compress(torch.eye(4), levels=1, version="monday")
            >>> codes.save("items.safetensors")
            >>> retrieval.VectorCodes.load("items.safetensors").version
            'monday'
        """
        header, tensors = artifact.load(path, KIND)
        check_version(version, header["version"], f"the codes in {path} are not what was asked for: they")
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("network.")}
        try:
            form = _read(header, own)
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path} does not match its header ({error})") from None
        network = None
        if "network" in header:
            network = SignNetwork(**header["network"])
            state = {name.removeprefix("network."): value for name, value in tensors.items() if name not in own}
            network.load_state_dict(state)
            network.eval()
        settings = {"metric": header["metric"], "version": header["version"], "settings": header["settings"]}
        return VectorCodes(form, network=network, **settings)

    def _queries(self, queries: Tensor, version: str | None) -> Tensor:
        check_version(version, self.version, "queries")
        check_device(queries, "queries", self.device)
        queries = check_matrix(queries, "queries", self.width, self.metric == "cosine")
        return F.normalize(queries) if self.metric == "cosine" else queries

    @torch.no_grad()
    def _asked(self, queries: Tensor, how: str, version: str | None) -> tuple[Tensor, bool]:
        """The queries in the space of the codes, and whether the sizes of rows count."""
        if how not in HOWS:
            raise ValueError(f"how must be one of {', '.join(map(repr, HOWS))}, got {how!r}")
        queries = self._queries(queries, version)
        form = self.form
        alone = self.network is not None or (isinstance(form, GridForm) and form.is_signs and form.levels == 1)
        if how == "hamming" and not alone:
            raise ValueError("how='hamming' compares signs: make the codes with levels=1 or bits=1, or learn them")
        if isinstance(form, GridForm) and (how == "hamming" or (how == "codes" and self.network is not None)):
            signs = form.signs(queries) if self.network is None else self.network.signs(queries)
            if how == "codes":
                return form.of_signs(signs, queries), True
            return 2 * beside(total(signs, form.levels), form.levels), False  # codes less their middle are halves
        return (form.coded(queries) if how == "codes" else form.asked(queries)), True


def _with_tensors(form: Form, tensors: Mapping[str, Tensor]) -> Form:
    packed = dataclasses.replace(form.packed, data=tensors["codes"])
    return dataclasses.replace(form, **{**tensors, "codes": packed})  # pyright: ignore[reportArgumentType]


def _read(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Form:
    """Make a form from a file, after checking its sizes against each other."""
    groups = tuple((int(columns), int(bits)) for columns, bits in header["groups"])
    packed = PackedColumns(tensors["codes"], header["rows"], groups)
    if packed.data.shape != (groups_nbytes(packed.rows, groups),):
        raise ValueError(f"{packed.rows} rows of {groups} take {groups_nbytes(packed.rows, groups)} bytes")
    kind = _FORMS[header["form"]]
    names = {field.name for field in dataclasses.fields(kind)} - {"codes", "width_", "levels"}
    held = {name: tensors.get(name) for name in names}
    form = kind(codes=packed, width_=header["width"], **held)  # pyright: ignore[reportArgumentType]
    if isinstance(form, GridForm):
        form = dataclasses.replace(form, levels=header["levels"])
    if isinstance(form, GridForm):
        form.check_scales()
    form.decode(torch.arange(min(1, packed.rows)))
    return form

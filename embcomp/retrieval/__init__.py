"""Item vectors that are small enough to serve: grids of few bits, signs, product codes, and exact search in them."""

from embcomp.ops.code_search import Found
from embcomp.retrieval.choose import Choice, Tried, choose
from embcomp.retrieval.compress import compress
from embcomp.retrieval.learned import learn
from embcomp.retrieval.named import way
from embcomp.retrieval.sign_sums import SignSums
from embcomp.retrieval.vector_codes import VectorCodes
from embcomp.retrieval.ways import Grid, Product, Signs, Spread, Way

__all__ = [
    "Choice", "Found", "Grid", "Product", "SignSums", "Signs", "Spread", "Tried", "VectorCodes", "Way", "choose",
    "compress", "learn", "way",
]  # fmt: skip

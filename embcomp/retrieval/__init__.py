"""Item vectors that are small enough to serve: grids of few bits, signs, product codes, and exact search in them."""

from embcomp.ops.code_search import Found
from embcomp.retrieval.choose import way
from embcomp.retrieval.compress import compress
from embcomp.retrieval.learned import learn
from embcomp.retrieval.sign_sums import SignSums
from embcomp.retrieval.vector_codes import VectorCodes
from embcomp.retrieval.ways import Grid, Product, Signs, Spread, Way

__all__ = ["Found", "Grid", "Product", "SignSums", "Signs", "Spread", "VectorCodes", "Way", "compress", "learn", "way"]

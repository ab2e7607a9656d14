"""Every method, few random batches."""

import pytest
from hypothesis import settings

from embcomp.testing.examples import EXAMPLES

every_method = pytest.mark.parametrize("example", EXAMPLES, ids=str)
few = settings(max_examples=4)

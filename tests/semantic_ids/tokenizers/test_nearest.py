import torch
from hypothesis import given
from hypothesis import strategies as st

from embcomp.semantic_ids.tokenizers.nearest import nearest, squared_distances


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 9), st.booleans(), st.integers(0, 1000))
def test_the_nearest_by_brute_force(items: int, codes: int, width: int, whole: bool, seed: int) -> None:
    """Whole numbers give many exact ties, which go to the lower code."""
    generator = torch.Generator().manual_seed(seed)
    draw = (
        (lambda n: torch.randint(-2, 3, (n, width), generator=generator).float())
        if whole
        else (lambda n: torch.randn(n, width, generator=generator))
    )
    a, b = draw(items), draw(codes)
    distances = (a.double().unsqueeze(1) - b.double()).square().sum(2)
    assert torch.equal(nearest(a, b), distances.argmin(1))


def test_near_ties_that_float32_cannot_tell_do_not_depend_on_the_batch() -> None:
    """Pairs of codes mirrored at a hyperplane, items on it but for the last bits: products round either way."""
    generator = torch.Generator().manual_seed(0)
    codes = 100 + torch.randn(64, 200, generator=generator)
    codes[32:] = codes[:32] + 1e-6 * torch.randn(32, 200, generator=generator)
    items = codes[torch.arange(3000) % 64] + 1e-3 * torch.randn(3000, 200, generator=generator)
    whole = nearest(items, codes)
    assert torch.equal(whole, torch.cat([nearest(part, codes) for part in items.split(7)]))
    assert torch.equal(whole, torch.cat([nearest(part, codes) for part in items.split(1024)]))
    exact = torch.stack([squared_distances(items, code.expand_as(items)) for code in codes], 1)
    assert torch.equal(whole, exact.argmin(1))
    # The product alone gets some of them wrong.
    plain = (codes.square().sum(1) / 2 - items @ codes.t()).argmin(1)
    assert not torch.equal(whole, plain)


def test_precision_settings_of_the_process_change_nothing() -> None:
    items, codes = torch.randn(500, 64), torch.randn(50, 64)
    expected = nearest(items, codes)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(nearest(items, codes), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_squared_distances_are_those_of_the_definition() -> None:
    for width in (1, 2, 3, 7, 64, 65):
        a, b = torch.randn(5, width), torch.randn(5, width)
        torch.testing.assert_close(squared_distances(a, b), (a.double() - b.double()).square().sum(1))

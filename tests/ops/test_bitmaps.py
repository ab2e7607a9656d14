"""Bitmaps against plain lists of bits."""

import pytest
import torch

from embcomp.ops.bitmaps import WINDOW, bitmap_windows, bits_at, ones_before, pack_bitmap, rank_at


@pytest.mark.parametrize("number", [1, 7, 256, 257, 5000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_bits_and_ranks(number, share):
    bits = torch.rand(number, generator=torch.Generator().manual_seed(number)) < share
    bitmap = pack_bitmap(bits)
    assert bitmap.shape == (bitmap_windows(number), WINDOW // 8)
    places = torch.randint(number, (400,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(bits_at(bitmap, places), bits[places])
    assert torch.equal(bits_at(bitmap, places.view(20, 20)), bits[places].view(20, 20))
    expected = [int(bits[:place].sum()) for place in places.tolist()]
    assert rank_at(bitmap, ones_before(bitmap), places).tolist() == expected


def test_the_blocks_in_which_it_packs_do_not_show():
    bits = torch.arange((1 << 20) + 3) % 3 == 0
    assert torch.equal(bits_at(pack_bitmap(bits), torch.arange(len(bits))), bits)

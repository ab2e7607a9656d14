import pytest
import torch
from torchrec.streamable import Pipelineable


def test_to_keeps_everything(make_clicks):
    clicks, _ = make_clicks(100)
    batch = next(iter(clicks.loader("train", 40)))
    assert isinstance(batch, Pipelineable)
    moved = batch.to("meta")
    assert {moved.dense.device.type, moved.label.device.type, moved.sparse.values().device.type} == {"meta"}
    assert moved.columns.keys() == batch.columns.keys()
    assert moved.columns["row"].device.type == "meta"
    assert moved.sparse.length_per_key() == batch.sparse.length_per_key()
    back = batch.to(torch.device("cpu"), non_blocking=True)
    assert torch.equal(back.sparse.values(), batch.sparse.values())
    assert len(back) == 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_memory_and_streams(make_clicks):
    clicks, _ = make_clicks(100)
    batch = next(iter(clicks.loader("train", 40)))
    pinned = batch.pin_memory()
    assert pinned.dense.is_pinned()
    assert pinned.sparse.values().is_pinned()
    assert pinned.columns["row"].is_pinned()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = pinned.to("cuda", non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    stream.synchronize()
    assert torch.equal(moved.sparse.values().cpu(), batch.sparse.values())

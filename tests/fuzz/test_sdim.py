"""Calls of SDIM, right and wrong, against the formula in float64."""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from embcomp.ops.buckets import words_for
from embcomp.ops.signatures import unpack
from embcomp.sdim import SDIM
from embcomp.sdim.reference import pool_reference
from tests.fuzz.fuzzing import Tally, fuzz
from tests.fuzz.values import damaged, spoil_numbers


@dataclass
class Case:
    """A module, a call's arguments, and whether one of them has been spoilt."""

    sdim: SDIM
    args: dict[str, Any]
    form: str
    notes: list[str] = field(default_factory=list)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rule = draw(st.sampled_from(["l2", "mean", "kernel"]))
    tau = draw(st.sampled_from([1, 2, 3, 5]))
    dim, groups = draw(st.sampled_from([1, 3, 8, 16])), draw(st.sampled_from([1, 2, 7, 16]))
    batch, length, asked = draw(st.integers(0, 3)), draw(st.integers(0, 6)), draw(st.sampled_from([None, 0, 1, 2, 20]))
    form = draw(st.sampled_from(["padded", "jagged", "places", "places jagged"]))
    dtype = draw(st.sampled_from([torch.float32] * 4 + [torch.float64]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    sdim = SDIM(dim, groups * tau, tau, seed=1, rule=rule, projection=draw(st.sampled_from(["dense", "hadamard"])))
    if rule == "kernel":
        sdim.weight.data = torch.linspace(2, -1, tau + 1)
    args: dict[str, Any] = {}
    events, own = batch * length, draw(st.integers(1, 5))
    shape = (batch, length)
    if "jagged" in form:
        cuts = torch.randint(0, events + 1, (max(batch - 1, 0),), generator=g).sort().values
        args["offsets"] = torch.cat([torch.tensor([0]), cuts, torch.tensor([events])])[: batch + 1]
        if batch == 0:
            args["offsets"] = torch.tensor([0])
        shape = (events,)
    elif draw(st.booleans()):
        args["mask"] = torch.rand(batch, length, generator=g) < 0.7
    if "places" in form:
        args["places"] = torch.randint(0, own, shape, generator=g)
        args["sequence"] = torch.randn(own, dim, generator=g).to(dtype)
    else:
        args["sequence"] = torch.randn(*shape, dim, generator=g).to(dtype)
    asked_shape = (batch, dim) if asked is None else (batch, asked, dim)
    args["candidates"] = torch.randn(asked_shape, generator=g).to(dtype)
    for name, of in (("candidate_signatures", "candidates"), ("sequence_signatures", "sequence")):
        if draw(st.sampled_from([False, False, True])):
            args[name] = sdim.signatures(args[of])
    case = Case(sdim, args, form)
    spoilt = draw(st.sampled_from([None, None, "tensor", "numbers", "dtype"]))
    if spoilt:
        name = draw(st.sampled_from(sorted(args)))
        if spoilt == "tensor":
            args[name] = draw(damaged(args[name]))
        elif spoilt == "numbers" and name in ("offsets", "places"):
            args[name] = draw(spoil_numbers(args[name]))
        elif spoilt == "dtype":
            args[name] = args[name].to(draw(st.sampled_from([torch.int32, torch.float64, torch.float16, torch.bool])))
        case.notes.append(f"{spoilt} {name}")
    return case


def expected(case: Case) -> torch.Tensor:
    """History by history, from the arguments as they are."""
    sdim, args = case.sdim, case.args
    sequence, asked = args["sequence"], args["candidates"]
    asked = asked if asked.dim() == 3 else asked.unsqueeze(1)

    words = words_for(sdim.groups, sdim.hash_width)

    def codes(name: str, of: torch.Tensor) -> torch.Tensor:
        known = args.get(name)
        signed = sdim.signatures(of) if known is None else known.reshape(*of.shape[:-1], words)
        return unpack(signed, sdim.groups, sdim.hash_width)

    asked_codes, event_codes = codes("candidate_signatures", asked), codes("sequence_signatures", sequence)
    if (places := args.get("places")) is not None:
        sequence, event_codes = sequence[places], event_codes[places]
    weight = next((weight.double() for weight in sdim.parameters()), None)
    found = torch.zeros(asked.shape, dtype=torch.float64)
    for b in range(len(asked)):
        if (offsets := args.get("offsets")) is not None:
            own = slice(int(offsets[b]), int(offsets[b + 1]))
            vectors, buckets = sequence[own], event_codes[own]
        else:
            mask = args.get("mask")
            kept = slice(None) if mask is None else mask[b]
            vectors, buckets = sequence[b][kept], event_codes[b][kept]
        here = torch.ones(1, len(vectors), dtype=torch.bool)
        found[b] = pool_reference(
            asked_codes[b : b + 1], buckets[None], vectors[None].double(), here, sdim.rule, weight
        )[0]
    return found.reshape(args["candidates"].shape)


def check(case: Case, tally: Tally) -> None:
    given = case.args
    found = tally.attempt(lambda: case.sdim(**case.args))
    if found is None:
        return
    assert found.shape == given["candidates"].shape
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in given.values()):
        assert found.is_meta
    else:
        exact = given["sequence"].dtype != torch.float16 and given["candidates"].dtype != torch.float16
        close = {"rtol": 1e-3, "atol": 1e-4} if exact else {"rtol": 2e-2, "atol": 2e-2}
        torch.testing.assert_close(found.detach().double(), expected(case).detach(), **close)
    tally.is_right()


def test_calls(record_property) -> None:
    fuzz(record_property, "SDIM", cases(), check, tries=1200)

"""Blocks of filters' weights that keep or lose a weight together."""

import dataclasses
import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.ground.errors import SettingsError
from pipeline.networks.layers import filters_of
from pipeline.pruning.blocks import Blocks
from pipeline.pruning.cut import cut_blocks, cut_weights
from pipeline.pruning.masks import digest, kept, ones_like
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import ended
from pipeline.rounds.planning import planned
from pipeline.settings.identity import fingerprint, run_identity
from tests.conftest import SMALL
from tests.conftest import settings as configured

ASKED = configured("pruning=blocks", "pruning.fraction=0.3").pruning


def generator(name):
    return torch.Generator().manual_seed(len(name))


def blocks_of(shape, blocks):
    """The places of each block by hand, in the order of blocks: filters first, then all else."""
    filters, others = range(shape[blocks.axis]), [range(side) for axis, side in enumerate(shape) if axis != blocks.axis]
    for part in range(0, len(filters), blocks.filters):
        for first in range(part, part + blocks.filters, blocks.length):
            rows = range(first, min(first + blocks.length, part + blocks.filters))
            for rest in product(*others):
                yield [(*rest[: blocks.axis], row, *rest[blocks.axis :]) for row in rows]


def by_hand(weights, masks, blocks, fraction, power):
    """The fewest blocks of the lowest generalised means that are as many weights as are to go, by a sort."""
    entries = [(name, places) for name, weight in weights.items() for places in blocks_of(weight.shape, blocks[name])]
    alive = [(name, places) for name, places in entries if masks[name][places[0]]]

    def score(entry):
        name, places = entry
        total = sum(abs(float(weights[name][place])) ** power for place in places)
        return (total / len(places)) ** (1 / power)

    count = round(fraction * kept(masks))
    after = {name: mask.clone() for name, mask in masks.items()}
    for name, places in sorted(alive, key=score):
        if count <= 0:
            break
        for place in places:
            after[name][place] = False
        count -= len(places)
    return after


@given(
    layers=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.sampled_from([(), (3,), (1, 2)])),
        min_size=1,
        max_size=4,
    ),
    length=st.sampled_from([1, 2, 4, 8]),
    axis=st.integers(0, 1),
    norm=st.sampled_from(["l1", "l2"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_fewest_blocks_go_that_are_as_many_weights_as_are_to_go(layers, length, axis, norm, seed):
    draws = torch.Generator().manual_seed(seed)
    weights, blocks = {}, {}
    for number, (parts, filters, inputs, kernel) in enumerate(layers):
        sides = (parts * filters, inputs) if axis == 0 else (inputs, parts * filters)
        weights[f"layer{number}.weight"] = torch.randn(*sides, *kernel, generator=draws, dtype=torch.float64)
        blocks[f"layer{number}.weight"] = Blocks(axis, filters, length)
    asked = dataclasses.replace(ASKED, norm=norm)
    masks = ones_like(weights)
    for index in (1, 2, 3):
        expected = by_hand(weights, masks, blocks, 0.3, 1 if norm == "l1" else 2)
        masks = cut_blocks(asked, weights, masks, index, generator, {}, blocks)
        assert digest(masks) == digest(expected)
        weights = {name: weight * masks[name] for name, weight in weights.items()}


def test_blocks_of_one_are_single_weights():
    draws = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=draws) for name, shape in {"a": (6, 5, 3, 3), "b": (9, 6)}.items()}
    blocks = {name: Blocks(0, len(weight), 1) for name, weight in weights.items()}
    for scope, target in (("global", None), ("global", 0.123), ("layer", None), ("erk", None)):
        asked = dataclasses.replace(ASKED, scope=scope, target_density=target, fraction=0.7)
        found = cut_blocks(asked, weights, ones_like(weights), 1, generator, {}, blocks)
        assert digest(found) == digest(cut_weights(asked, weights, ones_like(weights), 1, generator, {}))


def test_equal_blocks_go_in_order_and_a_share_of_every_layer_stays():
    weights = {"a": torch.ones(8, 3), "b": torch.ones(8, 2)}
    blocks = {name: Blocks(0, 8, 4) for name in weights}
    found = cut_blocks(ASKED, weights, ones_like(weights), 1, generator, {}, blocks)
    assert found["a"].int().tolist() == [[0, 0, 0]] * 4 + [[1, 1, 1]] * 4
    assert found["b"].all()
    asked = dataclasses.replace(ASKED, fraction=0.9, empty_layer=0.2)
    with pytest.raises(ValueError, match=r"36 weights are to go, but only 32 may: 0\.2 of every layer is kept"):
        cut_blocks(asked, weights, ones_like(weights), 1, generator, {}, blocks)


LAYERS = {
    "a convolution": (nn.Conv2d(3, 10, 3), "weight", (0, 10)),
    "in groups": (nn.Conv2d(4, 12, 3, groups=2), "weight", (0, 6)),
    "by channel": (nn.Conv1d(6, 6, 3, groups=6), "weight", (0, 1)),
    "transposed": (nn.ConvTranspose2d(4, 12, 3, groups=2), "weight", (1, 6)),
    "linear": (nn.Linear(5, 7), "weight", (0, 7)),
    "attention": (nn.MultiheadAttention(8, 2), "in_proj_weight", (0, 8)),
    "its keys": (nn.MultiheadAttention(8, 2, kdim=4, vdim=4), "k_proj_weight", (0, 8)),
    "recurrent": (nn.GRU(5, 6), "weight_ih_l0", (0, 6)),
    "a projection of it": (nn.LSTM(5, 6, proj_size=4), "weight_hr_l0", (0, 4)),
    "an embedding": (nn.Embedding(20, 6), "weight", (1, 6)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_filters_that_read_the_same_inputs_are_neighbours(case):
    layer, name, expected = LAYERS[case]
    weight = layer.get_parameter(name)
    axis, filters = filters_of(layer, weight)
    assert (axis, filters) == expected
    assert weight.shape[axis] % filters == 0


@pytest.mark.parametrize("overrides", [(), ("pruning.block=8", "+method=gradual", "pruning.structure=block")])
def test_a_run_ends_at_its_target_with_whole_blocks(overrides, tmp_path):
    asked = ["pruning=blocks", "pruning.rounds=null", "pruning.target_density=0.3", "pruning.fraction=0.5"]
    if overrides:
        asked = ["pruning.target_density=0.3"]
    job, site = build_job(configured(*SMALL[:3], "deploy.sizes=false", *overrides, *asked), tmp_path)
    done = loop.run(job, site)
    assert ended(job, site, done)
    size = sum(mask.numel() for mask in job.alive().values())
    block = job.pruning.block
    assert 0.3 * size - block < done[-1].density * size <= math.ceil(0.3 * size)
    known = planned(job)
    assert len(known) == len(done)
    for round_, density in zip(done, known, strict=True):
        assert round_.density == pytest.approx(density, abs=2 * block / size)
    masks = site.ledger.masks(len(done) - 1)
    for name, blocks in job.blocks.items():
        alive = blocks.sums(masks[name].long())
        assert ((alive == 0) | (alive == blocks.sums(torch.ones_like(masks[name]).long()))).all()
    assert job.method == ("gradual (blocks of 8)" if overrides else "lr_rewinding (blocks of 4)")


def test_auto_is_the_block_of_the_engine_and_weights_have_none():
    auto, four, eight = (configured("pruning=blocks", f"pruning.block={each}") for each in ("auto", 4, 8))
    assert auto == four
    assert fingerprint(run_identity(auto)) != fingerprint(run_identity(eight))
    with pytest.raises(SettingsError, match=r"pruning\.block: got 4 with pruning\.structure=weight, takes auto"):
        configured("pruning.block=4")
    with pytest.raises(SettingsError, match=r"pruning\.block: got 3, takes auto or 2, 4 or 8"):
        configured("pruning=blocks", "pruning.block=3")

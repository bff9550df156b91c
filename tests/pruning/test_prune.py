"""The pruning step against ``torch.nn.utils.prune``, closed forms and invariants."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as reference

from pipeline.ground.randomness import generator
from pipeline.pruning.criteria import CRITERIA, Scores
from pipeline.pruning.cut import cut_weights
from pipeline.pruning.masks import density, digest, kept, ones_like
from pipeline.pruning.prune import CHUNK, emptied, lowest, prune, removal_count
from pipeline.pruning.shares import erdos_renyi_kernel
from tests.conftest import settings as configured

shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5)
fractions = st.floats(0.05, 0.95)


def random_weights(shapes, seed, distinct=True):
    generator = torch.Generator().manual_seed(seed)
    total = sum(a * b for a, b in shapes)
    flat = torch.randperm(total, generator=generator).float() if distinct else torch.randint(0, 4, (total,)).float()
    signs = torch.randint(0, 2, (total,), generator=generator) * 2 - 1
    parts = ((flat + 1) * signs).split([a * b for a, b in shapes])
    return {f"layer{i}.weight": part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def scores_of(weights):
    return {name: weight.abs() for name, weight in weights.items()}


@given(shapes=shapes, seed=st.integers(0, 2**31), fraction=fractions)
@settings(max_examples=60, deadline=None)
def test_ten_rounds_give_the_masks_of_torch(shapes, seed, fraction):
    """Weights change between rounds, as training changes them."""
    layers = [nn.Linear(b, a, bias=False) for a, b in shapes]
    masks = ones_like({f"layer{i}.weight": layer.weight for i, layer in enumerate(layers)})
    for round_ in range(10):
        weights = random_weights(shapes, seed + round_)
        for layer, weight in zip(layers, weights.values(), strict=True):
            target = layer.weight_orig if reference.is_pruned(layer) else layer.weight
            target.data.copy_(weight)
            if reference.is_pruned(layer):
                layer.weight = layer.weight_orig * layer.weight_mask
        before = kept(masks)
        reference.global_unstructured(
            [(layer, "weight") for layer in layers], reference.L1Unstructured, amount=fraction
        )
        masks = prune(scores_of(weights), masks, fraction=fraction)
        assert kept(masks) == before - round(fraction * before)
        for layer, mask in zip(layers, masks.values(), strict=True):
            assert torch.equal(layer.weight_mask.bool(), mask)


@given(shapes=shapes, seed=st.integers(0, 2**31), fraction=fractions, scope=st.sampled_from(["global", "layer"]))
@settings(max_examples=60, deadline=None)
def test_with_ties_too_the_count_is_exact_and_the_lower_position_goes_first(shapes, seed, fraction, scope):
    scores = scores_of(random_weights(shapes, seed, distinct=False))
    masks = ones_like(scores)
    for _ in range(4):
        pruned = prune(scores, masks, fraction=fraction, scope=scope)
        groups = [list(masks)] if scope == "global" else [[name] for name in masks]
        for group in groups:
            entries = [
                (float(score), position, name, index)
                for position, (name, index, score) in enumerate(
                    (name, i, s) for name in group for i, s in enumerate(scores[name].flatten())
                )
                if masks[name].flatten()[index]
            ]
            gone = {(name, index) for _, _, name, index in sorted(entries)[: round(fraction * len(entries))]}
            for name in group:
                expected = [
                    bool(alive) and (name, index) not in gone for index, alive in enumerate(masks[name].flatten())
                ]
                assert pruned[name].flatten().tolist() == expected
        masks = pruned


@given(shapes=shapes, seed=st.integers(0, 2**31), fraction=fractions, target=st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_a_mask_only_loses_ones_and_the_density_asked_for_is_the_density_got(shapes, seed, fraction, target):
    scores = scores_of(random_weights(shapes, seed, distinct=False))
    masks = ones_like(scores)
    total = kept(masks)
    for _ in range(200):
        pruned = prune(scores, masks, fraction=fraction, target_density=target)
        assert all((pruned[name] <= masks[name]).all() for name in masks)
        if kept(pruned) == kept(masks):
            break
        masks = pruned
    smallest_step = round(fraction * kept(masks))
    assert kept(masks) == round(target * total) or smallest_step == 0


@pytest.mark.parametrize(
    ("survivors", "size", "fraction", "target", "removed"),
    [
        (10, 10, 0.2, None, 2),
        (12, 10, 0.2, None, 2),
        (13, 10, 0.2, None, 3),
        (270_896, 270_896, 0.2, None, 54_179),
        (2, 10, 0.2, None, 0),
        (100, 1000, 0.2, 0.09, 10),
        (100, 1000, 0.2, 0.1, 0),
        (100, 1000, 0.2, 0.5, 0),
    ],
)
def test_removal_count(survivors, size, fraction, target, removed):
    assert removal_count(survivors, size, fraction, target) == removed


def test_resnet20_keeps_the_published_densities():
    survivors, densities = 270_896, []
    for _ in range(10):
        survivors -= removal_count(survivors, 270_896, 0.2)
        densities.append(round(survivors / 270_896, 4))
    assert densities == [0.8, 0.64, 0.512, 0.4096, 0.3277, 0.2621, 0.2097, 0.1678, 0.1342, 0.1074]


def test_layer_scope_removes_the_same_share_of_every_layer():
    scores = scores_of(random_weights([(10, 10), (5, 4)], 0))
    masks = prune(scores, ones_like(scores), fraction=0.2, scope="layer")
    assert [int(mask.sum()) for mask in masks.values()] == [80, 16]


def test_a_kept_share_protects_the_highest_scores_of_every_layer_and_the_count_stays_exact():
    scores = {
        "small.weight": torch.arange(10.0).view(2, 5),
        "large.weight": torch.arange(100.0, 190).view(9, 10),
    }
    masks = prune(scores, ones_like(scores), fraction=0.5, keep_share=0.2)
    assert masks["small.weight"].flatten().tolist() == [False] * 8 + [True] * 2
    assert kept(masks) == 50


def test_a_kept_share_that_leaves_too_little_to_prune_is_an_error():
    scores = {"a.weight": torch.arange(10.0)}
    with pytest.raises(ValueError, match=r"5 weights are to go, but only 4 may: 0\.6 of every layer is kept"):
        prune(scores, ones_like(scores), fraction=0.5, keep_share=0.6)


def test_an_emptied_layer_is_named():
    scores = {"first.weight": torch.zeros(3, 3), "last.weight": torch.ones(3, 3)}
    before = ones_like(scores)
    after = prune(scores, before, fraction=0.5)
    assert emptied(before, after) == ["first"]
    assert emptied(after, after) == []


def test_a_score_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="diverged"):
        prune({"a.weight": torch.tensor([1.0, math.nan])}, {"a.weight": torch.ones(2, dtype=torch.bool)}, fraction=0.5)


def test_random_pruning_depends_on_the_generator_alone():
    weights = random_weights([(30, 30)], 0)
    draw = [
        prune(
            Scores(CRITERIA["random"], weights, lambda name, seed=seed: generator(seed, name)),
            ones_like(weights),
            fraction=0.5,
        )
        for seed in (1, 1, 2)
    ]
    assert digest(draw[0]) == digest(draw[1]) != digest(draw[2])
    assert density(draw[2]) == 0.5


PER_MAC = configured("pruning=per_mac", "pruning.fraction=0.4").pruning


@given(shapes=shapes, seed=st.integers(0, 2**31), strength=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_magnitude_per_mac_gives_the_masks_of_torch_for_those_scores(shapes, seed, strength):
    """Strength 0 is plain magnitude; a layer that is never applied costs as much as one that is applied once."""
    draws = torch.Generator().manual_seed(seed)
    weights = {f"layer{i}.weight": torch.randn(shape, generator=draws) for i, shape in enumerate(shapes)}
    positions = {name: 4**number // 4 for number, name in enumerate(weights)}
    layers = [nn.Linear(b, a, bias=False) for a, b in shapes]
    scores = {}
    for layer, (name, weight) in zip(layers, weights.items(), strict=True):
        layer.weight.data.copy_(weight)
        scores[layer, "weight"] = weight.abs() / max(1, positions[name]) ** strength
    reference.global_unstructured(list(scores), reference.L1Unstructured, importance_scores=scores, amount=0.4)
    asked = dataclasses.replace(PER_MAC, mac_strength=strength)
    masks = cut_weights(asked, weights, ones_like(weights), 1, generator, positions)
    for layer, mask in zip(layers, masks.values(), strict=True):
        kept_by_torch = int(layer.weight_mask.sum()) if reference.is_pruned(layer) else layer.weight.numel()
        assert int(mask.sum()) == kept_by_torch
        assert torch.equal(getattr(layer, "weight_mask", torch.ones_like(layer.weight)).bool(), mask)
    if strength == 0:
        plain = dataclasses.replace(asked, criterion="magnitude")
        assert digest(cut_weights(plain, weights, ones_like(weights), 1, generator, {})) == digest(masks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_lowest_are_those_of_a_stable_sort_whatever_their_type_and_sign(dtype):
    """Negative scores, both zeros, infinities and many ties; more than one chunk."""
    draws = torch.randn(CHUNK + 1000, generator=generator(0)).to(dtype)
    draws[::7], draws[::11], draws[5], draws[6] = 0.0, -0.0, math.inf, -math.inf
    scores = dict(zip("ab", draws.split([700, len(draws) - 700]), strict=True))
    among = {name: torch.rand(len(part), generator=generator(name)) < 0.8 for name, part in scores.items()}
    candidates = torch.cat(list(among.values())).nonzero().flatten()
    in_order = candidates[(draws[candidates].double() + 0.0).sort(stable=True).indices]
    for count in (0, 1, len(candidates) // 3, len(candidates) // 2, len(candidates)):
        expected = torch.zeros(len(draws), dtype=torch.bool)
        expected[in_order[:count]] = True
        assert torch.equal(torch.cat(list(lowest(scores, among, count).values())), expected)


def test_scores_of_dead_weights_are_not_looked_at():
    scores = {"a": torch.tensor([math.nan, 3.0, 1.0, 2.0])}
    masks = {"a": torch.tensor([False, True, True, True])}
    assert prune(scores, masks, fraction=1 / 3)["a"].tolist() == [False, True, False, True]


@given(shapes=shapes, seed=st.integers(0, 2**31), dead=st.floats(0, 0.9))
@settings(max_examples=40, deadline=None)
def test_lamp_is_a_square_over_all_that_are_not_smaller(shapes, seed, dead):
    """Lee et al. 2021, equation 4, weight by weight."""
    for weight in random_weights(shapes, seed).values():
        weight = weight * (torch.rand(weight.shape, generator=generator(seed)) >= dead)
        scores = CRITERIA["lamp"](weight, generator(0)).flatten()
        values = weight.flatten().double()
        for position, value in enumerate(values):
            not_smaller = values[values.abs() >= value.abs()].square().sum()
            expected = float(value.square() / not_smaller) if value else 0.0
            assert float(scores[position]) == pytest.approx(expected, rel=1e-5)


def test_lamp_takes_complex_weights_by_their_size():
    weight = torch.tensor([3j, 0.1, 2, -0.2])
    assert torch.equal(CRITERIA["lamp"](weight, generator(0)), CRITERIA["lamp"](weight.abs(), generator(0)))


def test_lamp_leaves_each_layer_its_largest_weight():
    """Its score is 1, whatever its size: no layer is emptied."""
    weights = {"small.weight": torch.rand(4, 4) * 1e-6, "large.weight": torch.rand(30, 30) + 1}
    masks = prune(Scores(CRITERIA["lamp"], weights, generator), ones_like(weights), fraction=0.99)
    assert all(mask.any() for mask in masks.values())


ERK = configured("pruning=erk").pruning


@given(
    layers=st.lists(st.tuples(*[st.integers(1, 8)] * 2, st.sampled_from([(), (1, 1), (3, 3)])), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    fraction=st.floats(0.05, 0.6),
)
@settings(max_examples=60, deadline=None)
def test_shares_by_erdos_renyi_kernel_are_exact_and_in_proportion_to_the_sums_of_dimensions(layers, seed, fraction):
    shapes = {f"layer{n}.weight": (a, b, *kernel) for n, (a, b, kernel) in enumerate(layers)}
    draws = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    pruning = dataclasses.replace(ERK, fraction=fraction)
    masks = ones_like(weights)
    for index in range(1, 6):
        before, left = masks, kept(masks)
        masks = cut_weights(pruning, weights, masks, index, generator, {})
        assert kept(masks) == left - round(fraction * left)
        assert all((before[name] | ~masks[name]).all() for name in masks)
        for name, mask in masks.items():
            gone = before[name] & ~mask
            if gone.any() and mask.any():
                assert weights[name][gone].abs().max() <= weights[name][mask].abs().min()
        free = [name for name in masks if int(masks[name].sum()) < int(before[name].sum())]
        shares = [int(masks[name].sum()) / sum(shapes[name]) for name in free]
        for name, share in zip(free, shares, strict=True):
            assert share == pytest.approx(
                max(shares), abs=1.01 * (1 / sum(shapes[name]) + 1 / min(map(sum, shapes.values())))
            )


def test_erdos_renyi_kernel_gives_the_densities_of_the_paper():
    """Two layers of a table by hand: density proportional to (n_in + n_out + w + h) / (n_in n_out w h)."""
    shapes = {"a": (64, 64, 3, 3), "b": (512, 512, 3, 3)}
    total = sum(math.prod(shape) for shape in shapes.values()) // 10
    limits = {name: math.prod(shape) for name, shape in shapes.items()}
    assert erdos_renyi_kernel(shapes, limits, total) == {"a": 27585, "b": 212031}  # 134 and 1,030 of 1,164 parts
    assert erdos_renyi_kernel(shapes, limits, 2 * total) == {"a": 36864, "b": 2 * total - 36864}  # all of the small one

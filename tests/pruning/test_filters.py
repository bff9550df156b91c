"""Filter pruning: which channels belong together, which go, and that the network without them computes the same."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from pipeline.deploy.shrink import macs, shrunk
from pipeline.ground.errors import SettingsError
from pipeline.networks import build_network
from pipeline.networks.costs import positions
from pipeline.networks.layers import prunable
from pipeline.pruning.channels import alive, channel_groups
from pipeline.pruning.cut import cut_filters
from pipeline.pruning.filters import counts, keep_filters, norms, prune_filters
from pipeline.pruning.masks import ones_like
from pipeline.rounds import loop as rounds
from pipeline.rounds.choice import ended
from pipeline.rounds.planning import planned, planned_densities
from tests.conftest import settings, some_fast
from tests.networks.test_zoo import MODELS
from tests.rounds.test_loop import Stop, Watch, content

FILTERS = ["pruning=filters", "pruning.target_density=0.5"]


def trained(model, size=32, channels=3):
    """A network of the zoo with weights and normalisation statistics of its own, its groups and whole masks."""
    example = torch.zeros(1, channels, size, size)
    network = build_network(settings(f"model={model}").model, example, 10, 0)
    draws = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, draws)
            nn.init.normal_(module.bias, 0, 0.3, draws)
            nn.init.normal_(module.running_mean, 0, 0.3, draws)
        elif isinstance(module, nn.Conv2d) and not module.weight.all():  # begins as an identity, which training leaves
            nn.init.kaiming_normal_(module.weight, generator=draws)
    return network.eval(), channel_groups(network, example)[0], torch.randn(4, channels, size, size, generator=draws)


def whole(network, groups):
    parameters = dict(network.named_parameters())
    vectors = [part.parameter for group in groups for part in group.vectors]
    return ones_like({name: parameters[name].detach() for name in [*prunable(network), *vectors]})


def weights_of(network):
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def kept_weights(masks):
    return sum(int(mask.sum()) for mask in masks.values() if mask.ndim > 1)


GROUPS_AND_CHANNELS = {
    "digits_cnn": (3, 80), "fast_cnn": (7, 1176), "lenet_300_100": (2, 400), "mobilenet_v1": (14, 5984), "mobilenet_v2": (25, 9128),
    "resnet110": (57, 2128), "resnet18": (12, 2880), "resnet20": (12, 448), "resnet32": (18, 672), "resnet34": (20, 4736),
    "resnet44": (24, 896), "resnet50": (37, 11456), "resnet56": (30, 1120), "vgg16": (13, 4224),
}  # fmt: skip
SHAPES = {"digits_cnn": (8, 1), "lenet_300_100": (28, 1), "resnet50": (64, 3)}


@pytest.mark.parametrize(
    "model", some_fast(zip(MODELS), [("resnet20",), ("mobilenet_v1",), ("digits_cnn",), ("fast_cnn",)])
)
def test_removed_equals_masked(model):
    network, groups, inputs = trained(model, *SHAPES.get(model, (32, 3)))
    assert (len(groups), sum(group.size for group in groups)) == GROUPS_AND_CHANNELS[model]
    masks = whole(network, groups)
    scores = norms(weights_of(network), masks, groups, 1)
    total = kept_weights(masks)
    places = positions(network, inputs[:1])
    for share in (0.8, 0.4, 0.15):
        pruned = prune_filters(scores, masks, groups, goal=share * total, cost=kept_weights)
        network_masked = copy.deepcopy(network)
        with torch.no_grad():
            for name, mask in pruned.items():
                network_masked.get_parameter(name).mul_(mask)
            smaller = shrunk(network_masked, inputs)
            others = torch.randn(3, *inputs.shape[1:], generator=torch.Generator().manual_seed(2))
            expected = network_masked(others)
            torch.testing.assert_close(smaller(others), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        left = sum(int(pruned[name].sum()) * count for name, count in places.items())
        assert macs(smaller, inputs[:1]) == left
        assert sum(p.numel() for p in smaller.parameters() if p.ndim > 1) == kept_weights(pruned)


def test_widths_stay_multiples_where_asked():
    network, groups, inputs = trained("resnet20")
    masks = whole(network, groups)
    scores = norms(weights_of(network), masks, groups, 1)
    pruned = prune_filters(scores, masks, groups, goal=0.4 * kept_weights(masks), cost=kept_weights)
    with torch.no_grad():
        for name, mask in pruned.items():
            network.get_parameter(name).mul_(mask)
        for multiple in (4, 8):
            smaller = shrunk(network, inputs, multiple)
            widths = {name: len(weight) for name, weight in weights_of(smaller).items() if "conv" in name}
            assert all(width % multiple == 0 for width in widths.values())
            for group in groups:
                living = int(alive(group, pruned).sum())
                assert widths[f"{group.name}.weight"] == min(group.size, -(-living // multiple) * multiple)
            torch.testing.assert_close(smaller(inputs), network(inputs), rtol=1e-4, atol=1e-4)


def test_channels_that_share_a_residual_sum_or_a_depthwise_convolution_belong_together():
    _, groups, _ = trained("resnet20")
    stream = next(group for group in groups if group.name == "stage2.0.conv2")
    assert set(stream.layers) == {"stage2.0.conv2", "stage2.0.shortcut.0", "stage2.1.conv2", "stage2.2.conv2"}
    assert {part.parameter for part in stream.readers} == {
        "stage2.1.conv1.weight", "stage2.2.conv1.weight", "stage3.0.conv1.weight", "stage3.0.shortcut.0.weight",
    }  # fmt: skip
    _, groups, _ = trained("mobilenet_v1")
    first = groups[0]
    assert first.layers == ("features.0", "features.3")
    assert [part.parameter for part in first.readers] == ["features.6.weight"]
    assert all(group.name != "classifier" for group in groups), "what the scores are stays"


def test_a_flattened_map_gives_each_channel_all_its_columns():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2))
    (group,), _ = channel_groups(network, torch.zeros(1, 1, 4, 4))
    pruned = keep_filters({"0": torch.tensor([3.0, 1.0, 2.0])}, whole(network, [group]), [group], {"0": 2})
    assert (~pruned["3.weight"]).nonzero()[:, 1].unique().tolist() == [4, 5, 6, 7]
    assert (~pruned["0.weight"]).nonzero()[:, 0].unique().tolist() == [1]
    assert pruned["0.bias"].tolist() == [True, False, True]


@pytest.mark.parametrize("norm", [1, 2])
def test_filters_of_a_layer_go_as_torch_takes_them(norm):
    network, groups, _ = trained("vgg16")
    masks = whole(network, groups)
    scores = norms(weights_of(network), masks, groups, norm)
    for group in groups[:4]:
        layer = copy.deepcopy(network.get_submodule(group.name))
        torch_prune.ln_structured(layer, "weight", amount=group.size // 3, n=norm, dim=0)
        expected = layer.weight_mask.flatten(1).any(1)
        pruned = keep_filters(scores, masks, [group], {group.name: group.size - group.size // 3})
        assert torch.equal(alive(group, pruned), expected)
        weight = network.get_submodule(group.name).weight.detach().numpy().astype(np.float64)
        mean = (np.abs(weight) ** norm).mean((1, 2, 3)) ** (1 / norm)
        np.testing.assert_allclose(scores[group.name].numpy(), mean, rtol=1e-12)


NETWORK, GROUPS, _ = trained("resnet20")
WHOLE = whole(NETWORK, GROUPS)


@hypothesis(max_examples=25, deadline=None)
@given(
    goals=st.lists(st.floats(0.05, 1), min_size=2, max_size=2),
    seed=st.integers(0, 99),
    scope=st.sampled_from(["global", "layer"]),
    share=st.sampled_from([0.0, 0.2]),
)
def test_a_goal_is_met_to_within_one_filter_masks_lose_ones_alone_and_no_layer_is_emptied(goals, seed, scope, share):
    draws = torch.Generator().manual_seed(seed)
    scores = {group.name: torch.rand(group.size, generator=draws) for group in GROUPS}
    total = kept_weights(WHOLE)
    widest = max(
        sum(part.places.numel() * WHOLE[part.parameter].numel() // WHOLE[part.parameter].shape[part.dimension]
            for part in (*group.makers, *group.readers)) // group.size
        for group in GROUPS
    )  # fmt: skip
    masks = WHOLE
    for goal in sorted(goals, reverse=True):
        try:
            pruned = prune_filters(
                scores, masks, GROUPS, goal=goal * total, cost=kept_weights, scope=scope, keep_share=share
            )
        except ValueError as error:
            assert share
            assert "are to be left" in str(error)  # noqa: PT017
            return
        assert all(not (pruned[name] & ~masks[name]).any() for name in masks)
        left = kept_weights(pruned)
        assert left <= goal * total
        assert left == kept_weights(masks) or left > goal * total - widest
        for group in GROUPS:
            assert int(alive(group, pruned).sum()) >= max(1, round(share * group.size))
        masks = pruned


@hypothesis(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=8),
    share=st.floats(0.01, 1),
)
def test_shares_are_met_over_a_pattern_and_by_each_layer_to_one_filter(sizes, share):
    layers = {f"a{number}": size for number, size in enumerate(sizes)} | {"b": 10}
    kept = counts(layers, {"a*": share}, lambda name, pattern: name.startswith(pattern[0]))
    assert kept["b"] == 10
    for name, size in layers.items():
        if name != "b":
            assert max(1, int(share * size)) <= kept[name] <= max(1, int(share * size) + 1)
    wanted, got = round(sum(share * size for size in sizes)), sum(kept[f"a{n}"] for n in range(len(sizes)))
    assert got == wanted or (got > wanted and 1 in kept.values())


def test_the_first_pattern_of_a_layer_counts():
    kept = counts({"x": 10, "y": 10}, {"x": 0.5, "*": 0.2}, lambda name, pattern: pattern in ("*", name))
    assert kept == {"x": 5, "y": 2}


@pytest.mark.parametrize(
    "method", ["lr_rewinding", "weight_rewinding", "lottery_ticket", "fine_tuning", "reinitialisation"]
)
def test_every_method_retrains_filters_which_stay_zero(method, small_job):
    job, site = small_job(f"retraining={method}", *FILTERS, "pruning.rounds=null", "model.arguments.width=8")
    done = rounds.run(job, site)
    dense = done[0].macs_dense
    for before, after in itertools.pairwise(done):
        assert after.macs_kept <= max(0.5 * dense, 0.8 * before.macs_kept)
    assert 0.4 * dense < done[-1].macs_kept <= 0.5 * dense < done[-2].macs_kept
    assert not ended(job, site, done[:-1])
    assert ended(job, site, done)
    for each in done[1:]:
        masks, state = site.ledger.masks(each.index), site.ledger.state(each.index)
        for name, mask in masks.items():
            assert (state.network[name][~mask] == 0).all(), "scale and shift of the normalisation too"
        groups = job.groups
        for group in groups:
            living = alive(group, masks)
            for part in (*group.makers, *group.readers, *group.vectors):
                gone = part.places[~living[part.channels]]
                assert not masks[part.parameter].index_select(part.dimension, gone).any()


@pytest.mark.slow
def test_stopping_after_any_epoch_changes_nothing(small_job, tmp_path):
    command = [*FILTERS, "pruning.rounds=2", "pruning.fraction=0.3", "pruning.target_density=null"]
    undisturbed, stopped = tmp_path / "whole", tmp_path / "stopped"
    rounds.run(*small_job(*command, runs=undisturbed))
    for _ in range(9):
        with pytest.raises(Stop):
            rounds.run(*small_job(*command, runs=stopped, watchers=(Watch(dies_after=1),)))
    rounds.run(*small_job(*command, runs=stopped))
    assert content(stopped) == content(undisturbed)


def test_the_dense_network_is_that_of_weight_pruning(small_job, tmp_path):
    rounds.run(*small_job(runs=tmp_path / "both"))
    watch = Watch()
    rounds.run(*small_job(*FILTERS, "pruning.rounds=1", "pruning.target_density=null", runs=tmp_path / "both",
                         watchers=(watch,)))  # fmt: skip
    assert watch.trained == [1]


def test_the_papers_resnet56_b_has_its_density():
    network, groups, _ = trained("resnet56")
    pruning = settings("+experiment=resnet56_b", "data.source=x").pruning
    masks = whole(network, groups)
    pruned = cut_filters(pruning, weights_of(network), masks, 1, torch.Generator, groups, {})
    assert (kept_weights(pruned), kept_weights(masks)) == (741_776, 851_504)
    assert round(kept_weights(pruned) / kept_weights(masks), 3) == 0.871
    gone = {group.name: group.size - int(alive(group, pruned).sum()) for group in groups}
    assert {name for name, count in gone.items() if count} == {
        *(f"stage1.{block}.conv1" for block in range(7)),
        *(f"stage2.{block}.conv1" for block in (1, 2, 3, 4, 5, 6, 8)),
        *(f"stage3.{block}.conv1" for block in range(1, 8)),
    }
    for stage, share in (("stage1", 0.6 * 16), ("stage2", 0.3 * 32), ("stage3", 0.1 * 64)):
        assert {abs(count - share) < 1 for name, count in gone.items() if name.startswith(stage) and count} == {True}


def test_shares_of_weights_are_densities_of_layers(small_job):
    job, site = small_job("pruning.shares={features.0:0.5,features.*:1/4}", "pruning.rounds=null")
    done = rounds.run(job, site)
    assert len(done) == 2
    assert ended(job, site, done)
    kept = {layer.name: (layer.kept, layer.weights) for layer in done[1].layers}
    assert kept["features.0"] == (18, 36)
    together = [kept[name] for name in ("features.3", "features.6")]
    assert sum(k for k, _ in together) == round(sum(w for _, w in together) / 4)
    assert kept["output"][0] == kept["output"][1]
    assert [each.density for each in done] == planned(job)


def test_a_policy_file_gives_shares_and_its_name(small_job, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"name": "halves", "structure": "filter", "shares": {"*": 0.5}}))
    job, _ = small_job(
        "pruning=filters", f"pruning.policy={path}", "pruning.target_density=null", "pruning.rounds=null"
    )
    assert job.method == "lr_rewinding (filters by halves)"
    assert job.pruning == dataclasses.replace(job.pruning, policy="halves", shares={"*": 0.5})
    assert all(int(alive(group, job.cut(job.initial(0), job.alive(), 1)).sum()) == group.size // 2
               for group in job.groups)  # fmt: skip


def test_a_fraction_follows_from_rounds_and_target():
    pruning = settings("pruning.fraction=null", "pruning.rounds=3", "pruning.target_density=0.216").pruning
    assert pruning.fraction == pytest.approx(0.4)
    assert planned_densities([1000], pruning) == [1, 0.6, 0.36, 0.216]


POLICY = '{"name": "x", "structure": "filter", "shares": %s}'


@pytest.mark.parametrize(
    ("overrides", "policy", "fault"),
    [
        (["pruning.policy={path}"], None, "pruning.policy: .*policy.json: No such file"),
        (["pruning.policy={path}"], "[1]", "policy.json is no policy .*, takes a JSON file with name, structure and"),
        (["pruning.policy={path}"], POLICY % '{"*": 2}', "has shares .*, takes a mapping of names, each to a share"),
        (["pruning.policy={path}"], POLICY % "{}", "has shares {}, takes a mapping"),
        (["pruning.policy={path}", "pruning=iterative"], POLICY % '{"*": 1}', "for pruning.structure=filter, got we"),
        (["pruning.policy={path}"], POLICY % '{"z": 1}', "pruning.shares: got 'z', which matches no layer; the layers"),
        (
            ["pruning.fraction=null"],
            None,
            "pruning.fraction: got null with .*target_density=null, takes a share, or both",
        ),
        (
            ["pruning.policy=search"],
            None,
            "pruning.policy: got search, but that in .* is not complete: the same settin",
        ),
        (["pruning.exclude=['features.*']"], None, "no layer's filters can be removed; takes weight"),
    ],
)
def test_faults_are_sentences(overrides, policy, fault, tmp_path, small_job):
    path = tmp_path / "policy.json"
    if policy is not None:
        path.write_text(policy)
    with pytest.raises(SettingsError, match=fault):
        small_job("pruning=filters", "pruning.target_density=null", *(each.format(path=path) for each in overrides))


def test_shares_are_reached_in_rounds_of_one_factor(small_job):
    job, site = small_job("pruning=filters", "pruning.shares={features.3:0.25,features.6:0.9}", "pruning.rounds=2",
                    "pruning.target_density=null")  # fmt: skip
    done = rounds.run(job, site)
    assert len(done) == 3
    assert ended(job, site, done)
    left = [[int(alive(group, site.ledger.masks(index)).sum()) for group in job.groups] for index in (1, 2)]
    assert left == [[4, 4, 8], [4, 2, 7]]
    assert [each.density for each in done] == planned(job)

"""Where channels go: groups are held against networks whose filters alone are zero, and smaller ones made by hand."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.deploy.shrink import macs, shrunk
from pipeline.ground.errors import SettingsError
from pipeline.pruning.channels import channel_groups, without
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from tests.conftest import settings


class Graph(nn.Module):
    """Layers ``a``, ``b``, ... and what becomes of an input: ``forward(layers, x)``."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.way(self, x)


def conv(inputs, outputs, size=1, **more):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **more)


def shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def mean(x):
    return x.mean((2, 3))


def graph(way, a=8, b=8, reads=None, **more):
    """``a`` makes 8 channels of 3, ``way(net, a's)`` deals them, ``b`` reads and ``c`` gives scores."""
    return Graph(
        lambda net, x: net.c(mean(F.relu(net.b(way(net, net.a(x)))))),
        a=conv(3, a, 3), b=conv(reads or a, b, 3), c=nn.Linear(b, 5), **more,
    )  # fmt: skip


def flat(way, columns, channels=8, **more):
    return Graph(
        lambda net, x: net.c(F.relu(net.b(way(net, net.a(x))))),
        a=conv(3, channels, 3), b=nn.Linear(columns, 6), c=nn.Linear(6, 5), **more,
    )  # fmt: skip


class ShuffledConv(nn.Conv2d):
    """A convolution that deals what it makes."""

    def forward(self, x):
        return shuffle(super().forward(x))


PERMUTED = torch.tensor([3, 1, 0, 7, 6, 2, 4, 5])
CASES = {  # name: (network, layers whose filters may go, layers left alone)
    "plain": (graph(lambda net, x: F.relu(x)), "ab", ""),
    "norm": (graph(lambda net, x: F.relu(net.n(x)), n=nn.BatchNorm2d(8)), "ab", ""),
    "depthwise": (graph(lambda net, x: F.relu(net.d(x)), d=conv(8, 8, 3, groups=8)), "abd", ""),
    "residual": (graph(lambda net, x: x + net.d(F.relu(x)), d=conv(8, 8, 3)), "abd", ""),
    "concatenation": (graph(lambda net, x: torch.cat([x, F.relu(net.d(x))], 1), reads=14, d=conv(8, 6)), "abd", ""),
    "concatenation with itself": (graph(lambda net, x: torch.cat([x, x], 1), reads=16), "ab", ""),
    "concatenation with the image": (
        Graph(
            lambda net, x: net.c(mean(net.b(torch.cat([x, net.a(x)], 1)))),
            a=conv(3, 4),
            b=conv(7, 4),
            c=nn.Linear(4, 5),
        ),
        "b",
        "a",
    ),
    "chunks swapped": (graph(lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1)), "b", "a"),
    "split": (graph(lambda net, x: torch.cat([F.relu(y) for y in x.split([3, 5], 1)], 1)), "b", "a"),
    "chunks summed": (graph(lambda net, x: sum(x.chunk(2, 1)), reads=4), "b", "a"),
    "chunks multiplied": (graph(lambda net, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), reads=4), "ab", ""),
    "unbound": (graph(lambda net, x: torch.stack(x.unbind(1)[::-1], 1)), "b", "a"),
    "half": (graph(lambda net, x: x[:, 4:], reads=4), "ab", ""),
    "every second": (graph(lambda net, x: x[:, ::2], reads=4), "ab", ""),
    "squeeze-excite": (
        graph(
            lambda net, x: x * net.e(F.relu(net.d(x.mean((2, 3), keepdim=True)))).sigmoid(), d=conv(8, 2), e=conv(2, 8)
        ),
        "abde",
        "",
    ),
    "squeeze-excite, linear": (
        graph(
            lambda net, x: x * net.e(F.relu(net.d(mean(x)))).sigmoid()[:, :, None, None],
            d=nn.Linear(8, 2),
            e=nn.Linear(2, 8),
        ),
        "abde",
        "",
    ),
    "gate of one channel": (graph(lambda net, x: x * net.d(x).sigmoid(), d=conv(8, 1)), "b", "ad"),
    "sum with one channel": (graph(lambda net, x: x + net.d(x), d=conv(8, 1)), "b", "ad"),
    "concatenated relu": (graph(lambda net, x: torch.cat([x, -x], 1).relu(), reads=16), "ab", ""),
    "shuffle": (graph(lambda net, x: shuffle(F.relu(x))), "b", "a"),
    "shuffle of four": (graph(lambda net, x: shuffle(F.relu(x), 4)), "b", "a"),
    "channel shuffle": (graph(lambda net, x: net.s(x), s=nn.ChannelShuffle(2)), "b", "a"),
    "shuffle, norm": (graph(lambda net, x: F.relu(net.n(shuffle(x))), n=nn.BatchNorm2d(8)), "b", "a"),
    "norm, shuffle": (graph(lambda net, x: shuffle(net.n(x)), n=nn.BatchNorm2d(8)), "b", "a"),
    "shuffle, depthwise": (graph(lambda net, x: net.d(shuffle(x)), d=conv(8, 8, 3, groups=8)), "b", "ad"),
    "shuffle beside": (graph(lambda net, x: x + shuffle(net.d(x)), d=conv(8, 8)), "b", "ad"),
    "shuffle there and back": (graph(lambda net, x: shuffle(F.relu(shuffle(x, 2)), 4)), "ab", ""),
    "shuffle of spare": (graph(lambda net, x: torch.cat([x[:, :4], net.d(x[:, 4:])], 1), d=conv(4, 4)), "abd", ""),
    "roll": (graph(lambda net, x: x.roll(3, 1)), "b", "a"),
    "flip": (graph(lambda net, x: x.flip(1)), "b", "a"),
    "permuted": (graph(lambda net, x: x[:, PERMUTED]), "b", "a"),
    "selected": (graph(lambda net, x: x.index_select(1, PERMUTED)), "b", "a"),
    "swapped axes": (graph(lambda net, x: x.transpose(1, 2), reads=8), "b", "a"),
    "pixel shuffle": (graph(lambda net, x: F.pixel_shuffle(x, 2), reads=2), "b", "a"),
    "pixel unshuffle": (graph(lambda net, x: F.pixel_unshuffle(x, 2), reads=32), "b", "a"),
    "padded before": (graph(lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 0)), reads=10), "b", "a"),
    "padded behind": (graph(lambda net, x: F.pad(x, (0, 0, 0, 0, 0, 2)), reads=10), "ab", ""),
    "padded around, with ones": (graph(lambda net, x: F.pad(x, (1, 1, 1, 1, 1, 1), value=1.0), reads=10), "b", "a"),
    "zeros before": (graph(lambda net, x: torch.cat([torch.zeros_like(x[:, :2]), x], 1), reads=10), "b", "a"),
    "repeated": (graph(lambda net, x: x.repeat(1, 2, 1, 1), reads=16), "ab", ""),
    "repeated each": (graph(lambda net, x: x.repeat_interleave(2, 1), reads=16), "b", ""),
    "expanded": (
        graph(lambda net, x: x[:, None].expand(-1, 2, -1, -1, -1).reshape(len(x), 16, 8, 8), reads=16),
        "b",
        "",
    ),
    "expanded each": (
        graph(lambda net, x: x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(len(x), 16, 8, 8), reads=16),
        "b",
        "",
    ),
    "maximum of pairs": (graph(lambda net, x: x.view(len(x), 4, 2, 8, 8).amax(2), reads=4), "b", "a"),
    "mean over channels": (graph(lambda net, x: x - x.mean(1, keepdim=True)), "b", "a"),
    "softmax over channels": (graph(lambda net, x: x.softmax(1)), "b", "a"),
    "cumulated": (graph(lambda net, x: x.cumsum(1)), "b", "a"),
    "sorted": (graph(lambda net, x: x.sort(1).values), "b", "a"),
    "normalised": (graph(lambda net, x: F.layer_norm(x, x.shape[1:])), "b", "a"),
    "grouped": (graph(lambda net, x: net.d(x), d=conv(8, 8, groups=2)), "b", ""),
    "pairs to one": (graph(lambda net, x: net.d(x), d=conv(8, 4, groups=4), reads=4), "b", ""),
    "several of each": (graph(lambda net, x: net.d(x), d=conv(8, 16, groups=8), reads=16), "b", ""),
    "shuffle inside": (graph(lambda net, x: net.d(F.relu(x)), d=ShuffledConv(8, 8, 1)), "ab", "d"),
    "twice": (graph(lambda net, x: net.d(F.relu(net.d(F.relu(x)))), d=conv(8, 8)), "abd", ""),
    "twice around a shuffle": (graph(lambda net, x: net.d(shuffle(net.d(F.relu(x)))), d=conv(8, 8)), "b", "ad"),
    "flatten": (flat(lambda net, x: x.flatten(1), 512), "ab", ""),
    "flatten of pooled": (flat(lambda net, x: F.max_pool2d(F.relu(x), 2).flatten(1), 128), "ab", ""),
    "flatten, channels last": (flat(lambda net, x: x.permute(0, 2, 3, 1).flatten(1), 512), "b", "a"),
    "flatten of shuffled": (flat(lambda net, x: shuffle(F.max_pool2d(x, 4)).flatten(1), 32), "b", "a"),
    "padded, flatten": (flat(lambda net, x: F.pad(x, (1, 1, 1, 1)).flatten(1), 800), "ab", ""),
    "unfold": (flat(lambda net, x: F.unfold(x, 2, stride=2).transpose(1, 2).mean(1), 32), "b", "a"),
    "tokens": (flat(lambda net, x: x.flatten(2).transpose(1, 2).mean(1), 8), "ab", ""),
    "linear at pixels": (
        flat(lambda net, x: net.d(x.permute(0, 2, 3, 1)).mean((1, 2)), 8, d=nn.Linear(8, 8)),
        "abd",
        "",
    ),
    "shuffled tokens": (flat(lambda net, x: mean(x).view(-1, 2, 4).transpose(1, 2).flatten(1), 8), "b", "a"),
    "einsum": (flat(lambda net, x: torch.einsum("nchw,nchw->nc", x, x), 8), "ab", ""),
}


IMAGE = torch.zeros(1, 3, 8, 8)


def with_weights(network, seed=0):
    """The network in float64, with weights of its own; layers named n and d make zero of zero."""
    draws = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(network).double().eval()
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, 0, 0.5, draws)
        if name[0] in "nd" and name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network


def mistakes(network, groups, shape=(3, 8, 8)):
    """Groups by which a living channel dies: filters alone dead do not make the same scores as all of their slices."""
    network = with_weights(network)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, *shape, dtype=torch.float64, generator=draws)

    def scores(group, dead):
        with torch.no_grad():
            return torch.func.functional_call(network, without(weights, [group], {group.name: dead}), (inputs,))

    def is_filter(part):
        return isinstance(layer := network.get_submodule(part.layer), nn.Linear | nn.Conv2d) and (
            isinstance(layer, nn.Linear) or layer.groups == 1
        )

    wrong = set()
    for group in groups:
        filters = replace(
            group,
            makers=tuple(filter(is_filter, group.makers)),
            vectors=tuple(filter(is_filter, group.vectors)),
            readers=(),
        )
        halves = torch.rand(2, group.size, generator=draws) < 0.5
        for dead in (*torch.eye(group.size, dtype=torch.bool), *halves):
            try:
                same = torch.allclose(scores(filters, dead), scores(group, dead), rtol=1e-9, atol=1e-9)
            except IndexError:  # a place that is none
                same = False
            wrong |= set() if same else {group.name}
    return wrong


@pytest.mark.parametrize("name", CASES)
def test_what_reads_a_dead_channel_gets_nothing_else_or_the_group_is_left_alone(name):
    network, stay, left = CASES[name]
    groups, alone = channel_groups(network, IMAGE)
    assert not mistakes(network, groups)
    assert "".join(sorted(layer for group in groups for layer in group.layers)) == stay
    assert "".join(sorted(alone)) == left


def test_the_table_is_whole():
    assert len(CASES) == 65


WAYS = {  # of maps x (N, C, 4, 4), by a layer, half of C, a number below C, a permutation
    "relu": lambda x, layer, half, shift, order: F.relu(x),
    "norm": lambda x, layer, half, shift, order: layer(x),
    "depthwise": lambda x, layer, half, shift, order: layer(x),
    "residual": lambda x, layer, half, shift, order: x + layer(F.relu(x)),
    "gate": lambda x, layer, half, shift, order: x * layer(x.mean((2, 3), keepdim=True)).sigmoid(),
    "shuffle": lambda x, layer, half, shift, order: shuffle(x),
    "swap": lambda x, layer, half, shift, order: torch.cat([x[:, half:], x[:, :half]], 1),
    "split": lambda x, layer, half, shift, order: torch.cat([F.relu(y) for y in (x[:, :shift], x[:, shift:])], 1),
    "again": lambda x, layer, half, shift, order: torch.cat([x, F.relu(x)], 1),
    "pad": lambda x, layer, half, shift, order: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "roll": lambda x, layer, half, shift, order: x.roll(shift, 1),
    "pick": lambda x, layer, half, shift, order: x[:, order],
    "slice": lambda x, layer, half, shift, order: x[:, half:],
    "pixel": lambda x, layer, half, shift, order: F.pixel_shuffle(F.pixel_unshuffle(x, 2).roll(shift, 1), 2),
}  # fmt: skip
LAYERS = {
    "norm": lambda c: ("n", nn.BatchNorm2d(c)),
    "depthwise": lambda c: ("d", conv(c, c, 3, groups=c)),
    "residual": lambda c: ("d", conv(c, c)),
    "gate": lambda c: ("e", conv(c, c)),
}


def drawn(seed):
    """A network with one to three random ways between its layers."""
    rng = random.Random(seed)
    channels, ways, layers = 8, [], {}
    for number in range(rng.randint(1, 3)):
        kind, half = rng.choice(list(WAYS)), channels // 2
        name = ""
        if kind in LAYERS:
            letter, layer = LAYERS[kind](channels)
            name = f"{letter}{number}"
            layers[name] = layer
        ways.append((WAYS[kind], name, half, rng.randint(1, channels - 1), rng.sample(range(channels), channels)))
        channels = {"again": 2 * channels, "pad": channels + 2, "slice": half}.get(kind, channels)
        if channels % 2:
            ways.append((WAYS["again"], "", channels // 2, 1, []))
            channels *= 2

    def forward(net, x):
        x = net.a(x)
        for way, name, *values in ways:
            x = way(x, net.get_submodule(name), *values)
        return net.c(mean(F.relu(net.b(x))))

    return Graph(forward, a=conv(3, 8, 3), b=conv(channels, 8), c=nn.Linear(8, 5), **layers)


def test_random_graphs_hold_or_are_left_alone():
    held = alone = refused = 0
    for seed in range(120):
        network = drawn(seed)
        try:
            groups, left = channel_groups(network, torch.zeros(1, 3, 4, 4))
        except ValueError:
            refused += 1
            continue
        assert not mistakes(network, groups, (3, 4, 4)), seed
        held += any("a" in group.layers for group in groups)
        alone += "a" in left
    assert held > 30
    assert alone > 30
    assert refused < 3


def test_columns_that_go_are_those_of_the_shuffled_filters():
    network, _, _ = CASES["shuffle"]
    groups, _ = channel_groups(network, IMAGE)
    masks = {name: torch.ones_like(each, dtype=torch.bool) for name, each in network.named_parameters()}
    gone = torch.tensor([False] + 4 * [False] + 3 * [True])
    gone[0] = True
    pruned = without(masks, groups, {"a": gone})
    dead = shuffle((~pruned["a.weight"].flatten(1).any(1))[None, :, None, None]).flatten()
    assert shuffle(gone[None, :, None, None]).flatten().nonzero().flatten().tolist() == [0, 3, 5, 7]
    assert not (~pruned["b.weight"].transpose(0, 1).flatten(1).any(1) & ~dead).any()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Softplus, nn.GELU, nn.Hardswish, nn.Hardsigmoid])
def test_a_network_without_dead_channels_made_by_hand_computes_the_same(activation):
    """Also where an activation makes something of zero: what reads a dead channel's is dead too."""
    network = nn.Sequential(
        conv(3, 6, 3), nn.BatchNorm2d(6), activation(), conv(6, 8), activation(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    groups, left = channel_groups(network, torch.zeros(1, 3, 4, 4))
    assert ([group.name for group in groups], left) == (["0", "3"], ())
    network = with_weights(network)
    nn.init.uniform_(network[1].running_mean)
    keep = {"0": torch.tensor([0, 2, 3]), "3": torch.tensor([1, 2, 6, 7])}
    dead = {group.name: torch.ones(group.size).bool().index_fill(0, keep[group.name], False) for group in groups}
    masked = without(dict(network.named_parameters()), groups, dead)
    first, second = keep.values()
    columns = torch.arange(128).view(8, 16)[second].flatten()
    smaller = nn.Sequential(
        conv(3, 3, 3), nn.BatchNorm2d(3), activation(), conv(3, 4), activation(), nn.Flatten(), nn.Linear(64, 5)
    ).double().eval()  # fmt: skip
    full = network.state_dict()
    smaller.load_state_dict(
        {name: full[name][first] for name in full if name.startswith("0.") or (name[0] == "1" and full[name].ndim)}
        | {"1.num_batches_tracked": full["1.num_batches_tracked"], "3.bias": full["3.bias"][second]}
        | {
            "3.weight": full["3.weight"][second][:, first],
            "6.weight": full["6.weight"][:, columns],
            "6.bias": full["6.bias"],
        }
    )
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.func.functional_call(network, masked, (inputs,)), smaller(inputs))


def test_a_weight_of_two_layers_is_no_group():
    layers = [nn.Linear(6, 6) for _ in range(2)]
    layers[1].weight = layers[0].weight
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), layers[0], nn.ReLU(), layers[1], nn.Linear(6, 5))
    groups, _ = channel_groups(network, IMAGE)
    assert not mistakes(network, groups)
    assert all(group.makers for group in groups)


@pytest.mark.parametrize("example", [[IMAGE, IMAGE], {"x": IMAGE, "y": IMAGE}])
def test_inputs_of_any_structure(example):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = conv(3, 8), conv(3, 8), conv(8, 4), conv(8, 4)

        def forward(self, x, y):
            return self.c(input=self.a(x) + self.b(y)) + self.d(shuffle(self.a(y)))

    groups, left = channel_groups(Two(), example)
    assert groups == ()
    assert set(left) == {"a", "b"}


class Shuffled(nn.Module):
    """Two convolutions around a channel shuffle, a third that is read as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(1, 8, 3), conv(8, 8, 3), conv(8, 16)
        self.output = nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.second(shuffle(F.relu(self.first(x)))))
        return self.output(mean(F.relu(self.third(x))))


def test_what_is_left_alone_is_told_and_the_rest_is_taken_out(tmp_path):
    overrides = ["model=custom", "model.network=tests.pruning.test_channels.Shuffled", "pruning=filters"]
    job, _ = build_job(settings(*overrides, "pruning.fraction=0.6"), tmp_path)
    assert [group.name for group in job.groups] == ["second", "third"]
    assert any(note.startswith("left out of pruning: filters of first (") for note in job.notes)
    masks = job.cut(job.initial(0), job.alive(), 1)
    network = copy.deepcopy(job.network).eval()
    with torch.no_grad():
        for name, mask in masks.items():
            network.get_parameter(name).mul_(mask)
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smaller = shrunk(network, inputs)
    assert macs(smaller, inputs[:1]) < 0.5 * macs(network, inputs[:1])
    torch.testing.assert_close(smaller(inputs), network(inputs))

    quiet, _ = build_job(settings(*overrides, "pruning.exclude=[first]"), tmp_path)
    assert not any("left out" in note for note in quiet.notes)
    with pytest.raises(
        SettingsError, match=r"no layer's filters can be removed.*\n.*filters of first \(their channels"
    ):
        build_job(settings(*overrides, "pruning.exclude=[second,third]"), tmp_path)


class PartlyFrozen(nn.Module):
    """Four convolutions in a row, of which one does not train, and a normalisation whose scale does not."""

    def __init__(self, frozen="second"):
        super().__init__()
        self.first, self.second, self.third, self.fourth = conv(1, 8), conv(8, 8), conv(8, 8), conv(8, 16)
        self.norm, self.output = nn.BatchNorm2d(16), nn.Linear(16, 10)
        self.norm.weight.requires_grad_(False)
        self.get_submodule(frozen).requires_grad_(False)

    def forward(self, x):
        for layer in (self.first, self.second, self.third, self.fourth):
            x = F.relu(layer(x))
        return self.output(mean(self.norm(x)))


@pytest.mark.parametrize(
    ("frozen", "taken"),
    [
        ("first", ["second", "third", "fourth"]), ("second", ["third", "fourth"]), ("fourth", ["first", "second"]),
        ("output", ["first", "second", "third"]),
    ],
)  # fmt: skip
def test_filters_that_frozen_weights_make_or_read_stay(frozen, taken, tmp_path):
    overrides = ["model=custom", "model.network=tests.pruning.test_channels.PartlyFrozen", "pruning=filters"]
    overrides += [f"model.arguments={{frozen: {frozen}}}", "pruning.target_density=null", "pruning.fraction=0.3"]
    job, site = build_job(
        settings(*overrides, "pruning.rounds=1", "training.epochs=1", "training.max_steps=3"), tmp_path
    )
    assert [group.name for group in job.groups] == taken
    stay = ", ".join(name for name in ("first", "second", "third", "fourth") if name not in taken)
    assert f"left out of pruning: filters of {stay} (frozen weights make or read them)" in job.notes
    masks = job.cut(job.initial(0), job.alive(), 1)
    assert all(masks[name].all() for name in masks if name.split(".")[0] == frozen)
    assert not all(mask.all() for mask in masks.values())
    loop.run(job, site)
    left, kept = site.ledger.state(1).network, site.ledger.masks(1)
    assert all((left[name][~mask] == 0).all() for name, mask in kept.items())
    assert torch.equal(left[f"{frozen}.weight"], job.initial(0)[f"{frozen}.weight"])
    assert set(left["norm.weight"].tolist()) <= {0.0, 1.0}

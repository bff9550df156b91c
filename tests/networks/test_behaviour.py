"""Two modules that behave differently have two digests; the same one has one, in every process."""

import copy
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.ground.tensors import update_digest
from pipeline.networks.behaviour import answers_of, behaviour_digest
from tests.conftest import PROJECT

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

SLOPE = 0.1
SIZES = {"wide": [3, 4]}

def activation(x):
    return F.leaky_relu(x, SLOPE)

class Net(nn.Module):
    # a comment
    def __init__(self, heads=2, p=0.0, momentum=0.1, stride=1, act=F.relu, padding="zeros"):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, stride=stride, padding=1, padding_mode=padding)
        self.norm = nn.BatchNorm1d(4, momentum=momentum)
        self.attention = nn.MultiheadAttention(4, heads, batch_first=True)
        self.drop = nn.Dropout(p)
        self.act = act

    def training_step(self, x):
        return x.view(SIZES["wide"])

    def forward(self, x):
        x = activation(self.norm(self.conv(x))).transpose(1, 2)
        return self.act(self.drop(self.attention(x, x, x)[0]))

class Data:
    def __init__(self, flip=False):
        self.flip = flip
    def augment(self, x):
        return x.flip(-1) if self.flip else x
"""


def digest(source=SOURCE, change=lambda net: None, **arguments):
    space = {"__name__": "users"}
    code = compile(source, "/nowhere/users.py", "exec")
    import linecache
    import types

    linecache.cache["/nowhere/users.py"] = (len(source), None, source.splitlines(True), "/nowhere/users.py")
    module = types.ModuleType("users")
    module.__file__ = "/nowhere/users.py"
    sys.modules["users"] = module
    exec(code, module.__dict__)
    del space
    torch.manual_seed(0)
    net = module.Net(**arguments)
    change(net)
    return behaviour_digest(net, answers_of(net, lambda asked: asked(torch.linspace(-1, 1, 16).reshape(1, 4, 4))))


def edited(before, after):
    assert before in SOURCE
    return {"source": SOURCE.replace(before, after)}


def frozen(net):
    net.conv.requires_grad_(False)


PAIRS = {
    "heads": {"heads": 1},
    "dropout": {"p": 0.5},
    "BatchNorm's momentum": {"momentum": 0.2},
    "stride": {"stride": 2},
    "padding mode": {"padding": "circular"},
    "activation": {"act": torch.tanh},
    "edited forward": edited("self.act(self.drop(", "2 * self.act(self.drop("),
    "edited function": edited("F.leaky_relu(x, SLOPE)", "F.elu(x)"),
    "edited constant": edited("SLOPE = 0.1", "SLOPE = 0.2"),
    "edited list in a constant": edited("[3, 4]", "[3, 5]"),
    "frozen": {"change": frozen},
    "in evaluation": {"change": lambda net: net.norm.eval()},
    "weights": {"change": lambda net: net.conv.bias.data.add_(1)},
    "a buffer": {"change": lambda net: net.norm.running_mean.add_(1)},
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_behaves_differently_has_another_digest(pair):
    assert digest(**PAIRS[pair]) != digest()


def test_the_same_has_the_same_digest_again_and_after_a_comment():
    assert digest() == digest()
    assert digest(SOURCE.replace("    # a comment\n", "")) == digest()


@pytest.mark.slow
def test_the_same_has_the_same_digest_in_another_process():
    program = "from tests.networks.test_behaviour import digest; print(digest())"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT / "src")},
        )  # fmt: skip
        assert done.stdout.strip() == digest()


def test_a_compiled_part_has_the_same_digest_again():
    """What torch.compile puts around it counts what it does."""

    def compiled(width):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, width))
        network.append(torch.compile(nn.Linear(width, 2), backend="eager"))
        return behaviour_digest(network, answers_of(network, lambda network: network(torch.ones(2, 4))))

    assert compiled(3) == compiled(3) != compiled(4)


def test_data_of_other_augmentation_have_another_digest():
    digest()
    data = sys.modules["users"].Data
    assert behaviour_digest(data()) == behaviour_digest(data())
    assert behaviour_digest(data()) != behaviour_digest(data(flip=True))


def test_asking_changes_nothing():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before, draws = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    behaviour_digest(net, answers_of(net, lambda asked: asked(torch.ones(4, 3))))
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert net.training


def test_classes_without_source_differ_by_their_byte_code():
    def typed(body):
        space = {"__name__": "__main__", "nn": nn}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        return behaviour_digest(space["Net"]())

    assert typed("x + 1") == typed("x + 1")
    assert typed("x + 1") != typed("x * 1")


BATCHES = {
    "words": (np.array(["a", "b"]), np.array(["a", "c"])),
    "days": (np.array(["2001-01-01"], "datetime64[D]"), np.array(["2001-01-02"], "datetime64[D]")),
    "fields": (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), np.array([(1, 3.0)], [("a", "i4"), ("b", "f8")])),
    "a set": ({"a", "b"}, {"a", "c"}),
    "objects": (np.array([1, "x"], dtype=object), np.array([1, "y"], dtype=object)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_that_differ_have_two_digests(kind):
    one, other = BATCHES[kind]
    assert digest_of(one) == digest_of(copy.deepcopy(one)) != digest_of(other)


def test_the_order_of_bytes_is_not_what_a_batch_holds():
    numbers = np.arange(4.0)
    numbers.setflags(write=False)
    assert digest_of(numbers) == digest_of(numbers.astype(">f8")) == digest_of(torch.arange(4.0).double())


def digest_of(thing):
    sha = hashlib.sha256()
    update_digest(sha, thing)
    return sha.hexdigest()

"""What optimizers remember, taken and given back: against torch's own loading and an uninterrupted training."""

import copy

import pytest
import torch
from torch import nn

from pipeline.training.state import capture, masked, restore

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "AdamW, one by one": lambda p: torch.optim.AdamW(p, 0.01, foreach=False),
    "Adam with amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).to(
        memory_format=torch.channels_last
    )


def step(model, optimizer, number):
    inputs = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_stopped(name):
    whole = network()
    optimizer = OPTIMIZERS[name](whole.parameters())
    for number in range(3):
        step(whole, optimizer, number)
    state = capture(whole, [optimizer])
    again, loaded = network(), copy.deepcopy(whole)
    again.load_state_dict(state.network)
    continued = OPTIMIZERS[name](again.parameters())
    restore([continued], again, state.optimizer)
    by_torch = OPTIMIZERS[name](loaded.parameters())
    by_torch.load_state_dict(optimizer.state_dict())
    for one, other in zip(again.parameters(), loaded.parameters(), strict=True):
        ours, theirs = continued.state[one], by_torch.state[other]
        assert ours.keys() == theirs.keys()
        for entry, value in theirs.items():
            assert type(ours[entry]) is type(value)
            if isinstance(value, torch.Tensor):
                assert (ours[entry].dtype, ours[entry].device) == (value.dtype, value.device), entry
                assert torch.equal(ours[entry], value)
    for number in range(3, 6):
        step(whole, optimizer, number)
        step(again, continued, number)
    assert same(whole.state_dict(), again.state_dict())


class Counting(torch.optim.SGD):
    """Remembers whole numbers, marks, and numbers of less precision."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["seen"] = state.get("seen", torch.zeros_like(parameter, dtype=torch.int64)) + (2**40 + 1)
                state["marks"] = parameter.detach() > 0
                state["rough"] = parameter.detach().to(torch.bfloat16)
        return super().step(closure)


def test_entries_keep_their_types():
    model = network()
    optimizer = Counting(model.parameters(), 0.1, momentum=0.9)
    step(model, optimizer, 0)
    state = capture(model, [optimizer])
    continued = Counting(model.parameters(), 0.1, momentum=0.9)
    restore([continued], model, state.optimizer)
    for parameter in model.parameters():
        for entry, value in optimizer.state[parameter].items():
            assert continued.state[parameter][entry].dtype == value.dtype
            assert torch.equal(continued.state[parameter][entry], value)


def test_a_second_optimizer_gets_its_own():
    model = network()
    pair = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9), torch.optim.AdamW(model[3].parameters(), 0.1)]
    for optimizer in pair:
        step(model, optimizer, 0)
    state = capture(model, pair)
    again = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9), torch.optim.AdamW(model[3].parameters(), 0.1)]
    restore(again, model, state.optimizer)
    assert capture(model, again).optimizer.keys() == state.optimizer.keys()
    assert same(capture(model, again).optimizer, state.optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_too(name):
    model = network().cuda()
    optimizer = OPTIMIZERS[name](model.parameters())
    inputs = torch.randn(5, 3, 8, 8).cuda()
    model(inputs).square().mean().backward()
    optimizer.step()
    state = capture(model, [optimizer])
    continued = OPTIMIZERS[name](model.parameters())
    restore([continued], model, state.optimizer)
    continued.step()


def test_names_with_bars_are_names_as_others():
    model = nn.ModuleDict({"a|b": nn.Linear(4, 3), "c|1": nn.Linear(3, 2)})
    pair = [torch.optim.AdamW(model["a|b"].parameters(), 0.1), torch.optim.SGD(model["c|1"].parameters(), 0.1, 0.9)]
    model["c|1"](model["a|b"](torch.ones(1, 4))).sum().backward()
    for optimizer in pair:
        optimizer.step()
    state = capture(model, pair)
    again = [torch.optim.AdamW(model["a|b"].parameters(), 0.1), torch.optim.SGD(model["c|1"].parameters(), 0.1, 0.9)]
    restore(again, model, state.optimizer)
    assert same(capture(model, again).optimizer, state.optimizer)
    name = "a|b.weight"
    dead = masked(state, {name: torch.zeros(3, 4, dtype=torch.bool)})
    zeros = [key for key, each in dead.optimizer.items() if not each.any() and state.optimizer[key].any()]
    assert sorted(zeros) == [f"{name}|exp_avg", f"{name}|exp_avg_sq"]
    assert not dead.network[name].any()

"""Training against a plain loop: dead weights stay dead, live ones move as if the forward pass had the mask."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.data.dataset import Shard
from pipeline.ground.errors import PipelineError
from pipeline.networks.layers import prunable
from pipeline.pruning.masks import ones_like
from pipeline.pruning.prune import prune
from pipeline.training.optimizer import make_optimizer
from pipeline.training.state import State, UnderWay, capture, masked, restore
from pipeline.training.train import RoundPlan, train_round
from tests.conftest import some_fast

OPTIMIZERS = {
    "SGD with momentum and decay": ["training/optimizer=sgd", "training.optimizer.weight_decay=5e-3"],
    "Nesterov": ["training/optimizer=sgd", "training.optimizer.nesterov=true"],
    "AdamW": [
        "training/optimizer=adamw",
        "training.optimizer.weight_decay=0.1",
        "training.optimizer.rate=1e-3",
    ],
}


def random_masks(network, fraction=0.7):
    parameters = dict(network.named_parameters())
    weights = {name: parameters[name].detach() for name in prunable(network)}
    return prune({n: w.abs() for n, w in weights.items()}, ones_like(weights), fraction=fraction)


class MaskedForward(nn.Module):
    """The network with weights multiplied by the mask in the forward pass: the textbook's way."""

    def __init__(self, network, masks):
        super().__init__()
        self.network, self.masks = network, masks

    def forward(self, x):
        parameters = dict(self.network.named_parameters())
        replaced = {name: parameters[name] * mask for name, mask in self.masks.items()}
        return torch.func.functional_call(self.network, replaced, (x,))


@pytest.mark.parametrize("rule", some_fast(zip(OPTIMIZERS), [("Nesterov",), ("AdamW",)]))
def test_dead_weights_are_zero_after_each_of_200_steps_and_live_ones_move_as_under_a_masked_forward_pass(
    rule, small_job, monkeypatch
):
    job, _ = small_job(*OPTIMIZERS[rule], "training.batch_size=64", "training.epochs=11", "training.max_steps=200")
    job.network.double()
    masks = random_masks(job.network)
    start = State({k: v.double() if v.is_floating_point() else v for k, v in job.initial(0).items()}, {})
    monkeypatch.setattr("pipeline.data.memory.standardised", lambda pixels: pixels.double() / 100 - 1)

    twin = MaskedForward(copy.deepcopy(job.network), masks)
    twin.network.load_state_dict(dict(masked(start, masks).network))
    optimizer = make_optimizer(twin.network, job.training.optimizer)
    tape = job.schedule()
    trajectory = []
    for epoch in range(11):
        steps = job.dense_span.steps(epoch)
        batches = job.dataset.training(job.training.batch_size, steps, (job.seed, 1, epoch), Shard())
        for batch, (images, labels, _) in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = tape.at(0, epoch, batch)[0, "lr"]
            optimizer.zero_grad()
            F.cross_entropy(twin(images), labels).backward()
            optimizer.step()
            trajectory.append({n: p.detach().clone() for n, p in twin.network.named_parameters()})

    steps = []
    step = type(optimizer).step

    def spy(self, *arguments, **named):
        result = step(self, *arguments, **named)
        for name, mask in masks.items():
            parameter = parameters[name]
            assert (parameter[~mask] == 0).all()
            assert (parameter.grad[~mask] == 0).all()
            for entry in self.state[parameter].values():
                assert entry.shape != mask.shape or (entry[~mask] == 0).all()
        for name, expected in trajectory[len(steps)].items():
            alive = masks.get(name, torch.ones(expected.shape, dtype=torch.bool))
            torch.testing.assert_close(parameters[name].detach()[alive], expected[alive], rtol=1e-7, atol=1e-9)
        steps.append(sum(float(p.detach().sum()) for p in parameters.values()))
        return result

    parameters = dict(job.network.named_parameters())
    monkeypatch.setattr(type(optimizer), "step", spy)
    train_round(
        job.trainable, RoundPlan(job.dense_span, masks, job.seed, 1, tape), UnderWay(start),
        first_epoch=0, on_epoch=lambda *_: None,
    )  # fmt: skip
    assert len(steps) == 200
    assert len(set(steps)) == 200


def test_masked_zeroes_weights_and_all_that_the_optimizer_remembers_of_them(small_job):
    job, _ = small_job()
    masks = random_masks(job.network)
    entries = {f"{name}|momentum_buffer": -torch.ones(mask.shape) for name, mask in masks.items()}
    entries |= {
        f"{next(iter(masks))}|step": torch.tensor(3.0),
        "features.1.weight|momentum_buffer": torch.ones(4),
    }
    before = {name: tensor.clone() for name, tensor in entries.items()}
    state = masked(State(job.initial(0), entries), masks)
    for name, mask in masks.items():
        for tensor in (state.network[name], state.optimizer[f"{name}|momentum_buffer"]):
            assert (tensor[~mask] == 0).all()
            assert not torch.signbit(tensor[~mask]).any()
            assert (tensor[mask] != 0).all()
    assert state.optimizer[f"{next(iter(masks))}|step"] == 3
    assert (state.optimizer["features.1.weight|momentum_buffer"] == 1).all()
    assert all(torch.equal(entries[name], before[name]) for name in entries), "what was passed in is changed"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimizers_state_survives_capture_and_restore(kind, small_job):
    job, _ = small_job(f"training/optimizer={kind}")
    reached = []
    train_round(
        job.trainable, RoundPlan(job.dense_span, {}, 0, 0), UnderWay(State(job.initial(0), {})),
        first_epoch=0, on_epoch=lambda _, state: reached.append(state.state),
    )  # fmt: skip
    assert reached[-1].optimizer
    optimizer = make_optimizer(job.network, job.training.optimizer)
    restore([optimizer], job.network, reached[-1].optimizer)
    again = capture(job.network, [optimizer])
    assert again.optimizer.keys() == reached[-1].optimizer.keys()
    assert all(torch.equal(again.optimizer[key], value) for key, value in reached[-1].optimizer.items())


def test_decay_may_spare_normalisation_and_biases(small_job):
    network = small_job()[0].network
    for spared in (True, False):
        settings = small_job(f"training.optimizer.decay_norm_and_bias={str(not spared).lower()}")[0].training.optimizer
        groups = make_optimizer(network, settings).param_groups
        decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
        assert all((p in decayed) is (p.ndim > 1 or not spared) for p in network.parameters())


def test_a_training_that_diverges_ends_in_a_sentence(small_job):
    job, _ = small_job("training.optimizer.rate=1e30")
    with pytest.raises(
        PipelineError, match=r"round 0, epoch 1: train_loss is no finite number any more: the training has diverged"
    ):
        train_round(
            job.trainable, RoundPlan(job.dense_span, {}, 0, 0), UnderWay(State(job.initial(0), {})),
            first_epoch=0, on_epoch=lambda *_: None,
        )  # fmt: skip


def test_a_layer_may_get_its_first_gradient_late():
    """Fused SGD of the settings against the plain one, where a layer is used from the second step on."""
    from tests.conftest import settings as composed

    def trained(make):
        torch.manual_seed(0)
        network = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        optimizer = make(network)
        for number in range(4):
            optimizer.zero_grad()
            hidden = network[0](torch.ones(2, 4))
            (network[1](hidden) if number % 2 else hidden).square().sum().backward()
            optimizer.step()
        return network.state_dict()

    settings = composed().training.optimizer
    ours = trained(lambda network: make_optimizer(network, settings))
    plain = {"momentum": settings.momentum, "nesterov": settings.nesterov, "weight_decay": settings.weight_decay}
    theirs = trained(lambda network: torch.optim.SGD(network.parameters(), settings.rate, **plain, foreach=False))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor)

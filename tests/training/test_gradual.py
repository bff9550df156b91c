"""Gradual pruning: how many weights are alive at each step, and that the dead stay dead."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.pruning.masks import kept
from pipeline.rounds import loop as rounds
from pipeline.training.gradual import to_keep


@given(start=st.integers(2, 10**7), share=st.floats(0.01, 1), way=st.floats(0, 2))
def test_the_sparsity_is_that_of_the_paper(start, share, way):
    end = max(1, int(start * share))
    final, along = 1 - end / start, min(way, 1.0)
    sparsity = final + (0 - final) * (1 - along) ** 3
    assert to_keep(start, end, way) == pytest.approx(start * (1 - sparsity), abs=0.51)


@pytest.mark.parametrize(
    ("scope", "optimizer"), [("global", "sgd"), ("erk", "adamw"), pytest.param("layer", "sgd", marks=pytest.mark.slow)]
)
def test_weights_go_within_the_training_from_the_initial_ones_and_never_come_back(scope, optimizer, small_job):
    arguments = [
        "+method=gradual", "pruning.rounds=1", "pruning.target_density=0.2", f"pruning.scope={scope}",
        f"training/optimizer={optimizer}", "training.epochs=6", "training.max_steps=null", "training.ema=0.5",
    ]  # fmt: skip
    job, site = small_job(*arguments)
    alive, size = [], sum(mask.numel() for mask in job.alive().values())

    def after_step(optimizer, *_):
        weights = {name: job.network.get_parameter(name).detach() for name in job.alive()}
        alive.append({name: weight != 0 for name, weight in weights.items()})

    hook = register_optimizer_step_post_hook(after_step)
    try:
        done = rounds.run(job, site)
    finally:
        hook.remove()
    steps = job.dense_span.total_steps
    counts = [kept(each) for each in alive[steps:]]
    last = int(steps * 3 / 4)
    assert len(counts) == steps
    assert counts[0] == pytest.approx(size, abs=2)
    tolerance = len(job.alive())  # each layer is rounded for itself
    for step in range(0, last + 1, max(1, last // 50)):
        expected = to_keep(size, round(0.2 * size), step / last)
        assert counts[step] == pytest.approx(expected, abs=tolerance if scope == "layer" else 0.5 + 1e-3 * size), step
    assert counts[last:] == [counts[-1]] * (steps - last)
    for before, after in zip(alive[steps:], alive[steps + 1 :], strict=False):
        assert all((before[name] | ~after[name]).all() for name in before), "a dead weight came back"
    masks, state = site.ledger.masks(1), site.ledger.state(1)
    assert kept(masks) == sum(layer.kept for layer in done[1].layers)
    if scope == "layer":
        assert all(int(mask.sum()) == round(0.2 * mask.numel()) for mask in masks.values())
    else:
        assert kept(masks) == round(0.2 * size)
    for name, mask in masks.items():
        assert (state.network[name][~mask] == 0).all()
        for key, entry in state.optimizer.items():
            if key.startswith(name) and entry.shape == mask.shape:
                assert (entry[~mask] == 0).all(), key
    assert not torch.equal(state.network["output.weight"], site.dense.state(0).network["output.weight"])

"""AMC: the walk against properties and closed forms, costs against masks, refits against numpy, searches against kills."""

import dataclasses
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from mlflow import MlflowClient
from scipy import stats
from torch import nn
from torch.nn import functional as F

from pipeline.amc import costs, ddpg, latency
from pipeline.amc.compressed import Normal, accuracy, channels, importance, normals, refit, sampled
from pipeline.amc.ddpg import Agent, Transition
from pipeline.amc.environment import (
    Environment,
    Step,
    accuracy_guaranteed,
    choices,
    resource_constrained,
    uniform,
    walk,
)
from pipeline.amc.problem import Problem
from pipeline.amc.search import Episode, chosen, search, transitions
from pipeline.commands.search import search_job
from pipeline.ground.errors import PipelineError
from pipeline.ground.tensors import read_tensors
from pipeline.networks.costs import positions
from pipeline.pruning.channels import alive, without
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from tests.conftest import PHOTOS, SMALL, settings, some_fast
from tests.processes import forked
from tests.pruning.test_filters import SHAPES, trained, weights_of, whole


def step(name="x", size=16, floor=0.2, multiple=1, macs=100, **place):
    known = {"outputs": size, "inputs": size, "height": 8, "width": 8, "stride": 1, "kernel": 3}
    return Step(name, size, choices(size, floor, multiple), **{**known, **place}, macs=macs)


def chain(sizes):
    """What a chain of 3x3 convolutions with these widths between them costs."""
    return lambda counts: sum(9 * a * b for a, b in zip([3, *counts], [*counts, 10], strict=True))


@hypothesis(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=8),
    actions=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    floor=st.floats(0.01, 1),
    multiple=st.sampled_from([1, 4, 8]),
    share=st.floats(0, 1),
)
def test_whatever_the_actions_the_budget_is_met_and_no_layer_goes_under_its_floor(
    sizes, actions, floor, multiple, share
):
    steps = tuple(step(size=size, floor=floor, multiple=multiple) for size in sizes)
    cost = chain(sizes)
    least, most = (cost([each.choices[end] for each in steps]) for end in (0, -1))
    environment = Environment(steps, cost, least + share * (most - least))
    taken = iter(actions)
    counts = walk(environment, lambda state: next(taken))
    for found in (counts, uniform(environment)):
        assert cost(found) <= environment.budget
        for count, size in zip(found, sizes, strict=True):
            assert count >= floor * size - 1e-6
            assert count % multiple == 0 or count == size
    for index, (count, action, size) in enumerate(zip(counts, actions, sizes, strict=False)):
        if count != size and count < action * size - 1e-6:  # cut down: one choice more would not have left enough
            more = steps[index].choices[list(steps[index].choices).index(count) + 1]
            floors = [each.choices[0] for each in steps[index + 1 :]]
            assert cost([*counts[:index], more, *floors]) > environment.budget


@pytest.mark.parametrize(
    ("size", "floor", "multiple", "expected"),
    [
        (16, 0.2, 8, [8, 16]),
        (64, 0.2, 8, [16, 24, 32, 40, 48, 56, 64]),
        (10, 0.2, 4, [4, 8, 10]),
        (3, 0.2, 8, [3]),
        (5, 0.2, 1, [1, 2, 3, 4, 5]),
        (5, 0.21, 1, [2, 3, 4, 5]),
    ],
)
def test_choices_are_multiples_from_the_floor_and_the_whole(size, floor, multiple, expected):
    assert list(choices(size, floor, multiple)) == expected


def test_a_budget_under_the_floors_is_out_of_reach():
    with pytest.raises(ValueError, match="a budget of 10 is out of reach: with every layer at its floor 468 are left"):
        Environment((step(size=20),), chain([20]), 10)


def test_states_have_the_eleven_features():
    steps = (
        step(size=4, inputs=4, outputs=8, height=16, width=16, stride=2, kernel=3, macs=300),
        step(size=8, inputs=8, outputs=2, height=8, width=4, stride=1, kernel=1, macs=100),
    )
    environment = Environment(steps, chain([4, 8]), None)
    assert environment.state([]) == pytest.approx([0, 1, 0.5, 1, 1, 1, 1, 1, 0, 0.25, 1])
    saved = 300 * 0.25 / 400
    assert environment.state([3]) == pytest.approx([1, 0.25, 1, 0.5, 0.25, 0.5, 1 / 3, 1 / 3, saved, 0, 0.75])


def test_rewards():
    assert resource_constrained(0.9, 1e6) == 0.9
    assert accuracy_guaranteed(0.9, 1e6) == pytest.approx(-0.1 * math.log(1e6))
    assert accuracy_guaranteed(0.9, 1e5) > accuracy_guaranteed(0.9, 1e6)


def test_an_episodes_reward_goes_to_all_of_its_steps():
    environment = Environment((step(size=4), step(size=8)), chain([4, 8]), None)
    first, second = transitions(environment, Episode(0, (0.9, 0.2), (3, 2), 0.8, 1.0, 0.7, 0))
    assert (first.action, second.action, first.reward, second.reward) == (0.9, 0.2, 0.7, 0.7)
    assert first.after == second.state == environment.state([3])
    assert second.after is None


COSTED = ["resnet20", "mobilenet_v1", "mobilenet_v2", "digits_cnn", "lenet_300_100", "vgg16"]


@pytest.mark.parametrize("model", some_fast(zip(COSTED), [*zip(COSTED[:-1])]))
def test_costs_are_those_of_the_masks(model):
    network, groups, inputs = trained(model, *SHAPES.get(model, (32, 3)))
    masks, weights, used = whole(network, groups), weights_of(network), positions(network, inputs[:1])
    parts = costs.products(weights, groups, used)
    draws = random.Random(0)
    for _ in range(4):
        counts = [draws.randint(1, group.size) for group in groups]
        dead = {group.name: torch.arange(group.size) >= count for group, count in zip(groups, counts, strict=True)}
        left = without(masks, groups, dead)
        kept = {name: int(left[name].sum()) for name in used}
        assert costs.parameters(parts)(counts) == sum(kept.values())
        assert costs.macs(parts)(counts) == sum(kept[name] * used[name] for name in used)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 2, (0, 2)), ((3, 1), 1, "odd")]
)
def test_what_a_layer_reads_times_its_weights_is_what_it_makes(kernel, stride, padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel, stride, (1, 0) if padding == "odd" else padding)
    inputs = torch.randn(5, 3, 9, 8)
    read, made = sampled(layer, inputs, layer(inputs).detach(), torch.Generator().manual_seed(1))
    assert read.shape[0] == made.shape[0] == 5 * 10
    torch.testing.assert_close(read @ layer.weight.detach().flatten(1).T.double(), made, rtol=1e-4, atol=1e-5)
    columns = (
        F.unfold(inputs, layer.kernel_size, padding=layer.padding, stride=layer.stride).transpose(1, 2).flatten(0, 1)
    )
    assert all(any(torch.equal(row.float(), each) for each in columns) for row in read[:6])


def test_a_refit_is_numpys_least_squares():
    draws = np.random.default_rng(0)
    read, weight = draws.standard_normal((400, 6 * 9)), draws.standard_normal((5, 6, 3, 3))
    read[:, 9:18] += 0.7 * read[:, :9]  # what is left can stand in for what goes
    made = read @ weight.reshape(5, -1).T
    mask = torch.ones(5, 6, 3, 3, dtype=torch.bool)
    mask[:, [1, 4]] = False
    mask[2] = False
    normal = Normal(torch.tensor(read.T @ read), torch.tensor(read.T @ made))
    fitted = refit(torch.tensor(weight), mask, normal)
    columns = np.repeat([True, False, True, True, False, True], 9)
    expected = np.linalg.lstsq(read[:, columns], made, rcond=None)[0].T
    rows = [0, 1, 3, 4]
    np.testing.assert_allclose(fitted.flatten(1).numpy()[rows][:, columns], expected[rows], rtol=1e-4, atol=1e-5)
    assert not fitted[~mask].any()


@pytest.mark.parametrize("model", some_fast(zip(["resnet20", "mobilenet_v1", "digits_cnn"]), [("resnet20",)]))
def test_a_refit_brings_a_network_nearer_to_the_whole(model):
    network, groups, inputs = trained(model, *SHAPES.get(model, (32, 3)))
    draws = torch.Generator().manual_seed(3)
    batches = [inputs + 0.3 * torch.randn(inputs.shape, generator=draws) for _ in range(60)]
    readers = [part.parameter for group in groups for part in group.readers]
    found = normals(network, readers, batches, draws)
    counts = [max(1, 3 * group.size // 4) for group in groups]
    expected = network(inputs)

    def difference(choice):
        other = trained(model, *SHAPES.get(model, (32, 3)))[0]
        other.load_state_dict(choice(counts), strict=False)
        return float((other(inputs) - expected).detach().norm())

    refitted, plain = (difference(channels(network, groups, each)) for each in (found, {}))
    assert refitted < plain
    kept = channels(network, groups, found)(counts)
    weights = weights_of(network)
    for group, count in zip(groups, counts, strict=True):
        lost = importance(weights, group).argsort(stable=True)[: group.size - count]
        for part in group.readers:
            gone = part.places[torch.isin(part.channels, lost)]
            assert not kept[part.parameter].index_select(part.dimension, gone).any()
    assert channels(network, groups, found)([group.size for group in groups]) == {}


def test_accuracy_is_of_the_replaced_weights_and_the_network_stays():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = network[1].weight.clone()
    weights = {"1.weight": torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), "1.bias": torch.zeros(2)}
    batch = (torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [2, 0, 0, 0]]).view(3, 1, 2, 2), torch.tensor([0, 1, 1]))
    assert accuracy(network, weights, [batch]) == pytest.approx(2 / 3)
    assert torch.equal(network[1].weight, before)


@pytest.mark.parametrize(("action", "sigma"), [(0.5, 0.5), (0.1, 0.3), (0.95, 0.05), (0.999, 0.01)])
def test_noise_is_the_truncated_normal(action, sigma):
    draws = torch.Generator().manual_seed(0)
    found = [ddpg.noisy(action, sigma, draws) for _ in range(2000)]
    expected = stats.truncnorm(-action / sigma, (1 - action) / sigma, loc=action, scale=sigma)
    assert stats.kstest(found, expected.cdf).pvalue > 0.001
    assert ddpg.sigma(0) == 0.5
    assert ddpg.sigma(3) == pytest.approx(0.5 * 0.95**3)


@pytest.mark.slow
def test_the_agent_learns_where_the_reward_is_and_is_written_and_read_bit_for_bit():
    agent, draws = Agent(2, 0), random.Random(0)
    memory = []
    for _ in range(300):
        action = draws.random()
        memory.append(Transition((draws.random(), 0.5), action, None, 1 - (action - 0.8) ** 2))
    for _ in range(700):
        agent.learn(draws.sample(memory, 64))
    assert abs(agent.action((0.5, 0.5)) - 0.8) < 0.15
    other = Agent(2, 1)
    other.read(agent.written())
    for each in (agent, other):
        each.learn(memory[:64])
    first, second = agent.written(), other.written()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_search_comes_to_better_choices_than_one_share_for_all_and_stays_there():
    """Twelve convolutions of which some matter far more than others; wishes that the wall cuts down once misled it."""
    sizes, maps = [16] * 4 + [32] * 4 + [64] * 4, [32] * 4 + [16] * 4 + [8] * 4
    draws = random.Random(1)
    matters = [draws.random() ** 2 for _ in sizes]

    def cost(counts):
        return sum(9 * m * m * a * b for a, b, m in zip(counts, [*counts[1:], 10], maps, strict=True))

    def accurate(counts):
        lost = sum(w * (1 - c / s) ** 2 for w, c, s in zip(matters, counts, sizes, strict=True))
        return 0.6 - 0.8 * lost / sum(matters)

    steps = tuple(
        step(f"l{n}", size, multiple=4, height=m, width=m, macs=9 * size * size * m * m)
        for n, (size, m) in enumerate(zip(sizes, maps, strict=True))
    )
    environment = Environment(steps, cost, cost(sizes) / 2)
    amc = dataclasses.replace(settings("+experiment=amc_digits").amc, episodes=200)
    found = rewards(environment, accurate, amc)
    assert statistics.mean(found[-20:]) > accurate(uniform(environment))
    assert statistics.mean(found[-20:]) > statistics.mean(found[:100]) + 0.05


def rewards(environment, accurate, amc):
    """The rewards of a search."""
    problem = Problem(environment, accurate, environment.cost, environment.cost)
    with tempfile.TemporaryDirectory() as folder:
        done = search(problem, amc, 0, Path(folder), {}, lambda episode: None)
    return [each.reward for each in done]


def test_the_policy_is_the_best_of_the_agents_and_the_median_of_chance():
    amc = settings("+experiment=amc_digits").amc
    episodes = [Episode(n, (1.0,), (1,), r, 1.0, r, 0) for n, r in enumerate([0.2, 0.9, 0.5, 0.9, 0.1])]
    assert chosen(amc, episodes).number == 1
    assert chosen(dataclasses.replace(amc, agent="random"), episodes).number == 2


AMC = [*SMALL, "+experiment=amc_digits", "model.arguments.width=8", "amc.warmup=8", "amc.episodes=16"]


def searched(tmp_path, *overrides):
    chosen = settings(*AMC, *overrides)
    path = search_job(*build_job(chosen, tmp_path), chosen, tmp_path)
    return json.loads(path.read_text()), path


class Stop(BaseException):
    pass


@pytest.mark.slow
def test_a_search_that_is_stopped_anywhere_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    expected, path = searched(tmp_path / "whole")
    from pipeline.amc import search as module

    write = module.write_tensors
    for number in (0, 3, 9, 10, 15):

        def stopping(*arguments, number=number):
            write(*arguments)
            if len(json.loads(arguments[2]["episodes"])) == number + 1:
                raise Stop

        with monkeypatch.context() as patched:
            patched.setattr(module, "write_tensors", stopping)
            with pytest.raises(Stop):
                searched(tmp_path / "stopped")
    found, other = searched(tmp_path / "stopped")
    assert found == expected
    assert agents(path) == agents(other)
    capsys.readouterr()
    searched(tmp_path / "stopped", "amc.episodes=20")
    assert "of 20" in capsys.readouterr().out
    assert len(MlflowClient(f"sqlite:///{tmp_path}/stopped/mlflow/mlflow.db").search_runs(["1"])) == 1


def agents(policy):
    """The tensors of a search, and its episodes without the clock."""
    tensors, metadata = read_tensors(policy.with_name("search.safetensors"))
    episodes = [{**each, "finished_ms": 0} for each in json.loads(metadata["episodes"])]
    return {name: tensor.tolist() for name, tensor in tensors.items()}, episodes


def test_a_search_is_tracked_once_with_its_policy_and_picture(tmp_path):
    _, path = searched(tmp_path)
    searched(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (found,) = client.search_runs(["1"])
    rewards = client.get_metric_history(found.info.run_id, "search/reward")
    episodes = agents(path)[1]
    assert [(row.step, row.value) for row in rewards] == [(each["number"], each["reward"]) for each in episodes]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} >= {"policy.json", "policy.png"}
    assert found.info.status == "FINISHED"


SEARCHES = [
    (["amc.budget=parameters"],),
    (["amc.budget=latency", "amc.share=0.9", "model.arguments.width=32"],),
    (["pruning.structure=weight", "pruning.measure=weights"],),
    (["amc.reward=accuracy_guaranteed", "amc.share=null"],),
    (["amc.agent=uniform"],),
    (["amc.agent=random"],),
]


@pytest.mark.parametrize("overrides", some_fast(SEARCHES, [SEARCHES[0], SEARCHES[2]]))
def test_a_policy_is_what_the_ordinary_step_does(overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    policy, path = searched(tmp_path, *overrides)
    if policy["budget"]["share"] is not None:
        assert policy["budget"]["used"] <= policy["budget"]["share"]
    kind = [each for each in overrides if each.startswith(("pruning", "model"))]
    chosen = settings(*SMALL, "+experiment=amc_digits", "task=run", "model.arguments.width=8", "pruning.rounds=1",
                      f"pruning.policy={path}", *kind)  # fmt: skip
    job, site = build_job(chosen, tmp_path)
    done = rounds.run(job, site)
    masks = site.ledger.masks(1)
    if job.groups:
        found = {group.name: int(alive(group, masks).sum()) for group in job.groups}
    else:
        found = {name.removesuffix(".weight"): int(mask.sum()) for name, mask in masks.items()}
    assert found == policy["kept"]
    assert done[1].macs_kept / done[0].macs_dense == pytest.approx(policy["macs"])
    assert job.method == f"lr_rewinding ({'filters' if job.groups else 'weights'} by {policy['name']})"


def test_measured_latencies_rise_with_the_widths_and_are_kept(tmp_path):
    width = costs.Width(0, ((0, 1),))
    part = costs.Product("conv", width, costs.Width(16), 9, 64)
    place = latency.Geometry(8, 8, (3, 3), (1, 1), (1, 1), depthwise=False)
    table = {}
    cost = latency.latency([part], {"conv": place}, [range(4, 65)], table)
    found = [cost([count]) for count in range(4, 65, 5)]
    assert found == sorted(found)
    assert found[0] > 0
    assert len(table) == latency.LEVELS
    latency.add_to_table(tmp_path / "a" / "latency.json", table)
    latency.add_to_table(tmp_path / "a" / "latency.json", {"other": 1.0})
    assert latency.read_table(tmp_path / "a" / "latency.json") == table | {"other": 1.0}


def test_latencies_of_another_processor_and_of_another_onnxruntime_are_kept_apart(monkeypatch):
    here = latency.file_here()
    monkeypatch.setattr(latency, "processor", lambda: "x86_64 another")
    there = latency.file_here()
    monkeypatch.setattr(latency.onnxruntime, "__version__", "1.0.0")
    assert len({here, there, latency.file_here()}) == 3


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["amc.share=0.01"], "amc.share: got 0.01 of amc.budget=macs, but a budget of .* out of reach"),
        (["amc.share=null"], "amc.share: got null with amc.reward=resource_constrained"),
        (["amc.budget=latency", "pruning=iterative"], "amc.budget: got latency with pruning.structure=weight"),
        (["training.devices=2"], "training.devices: got several processes for a search"),
        (["amc.agent=td3"], 'amc.agent: got "td3", takes ddpg or random or uniform'),
    ],
)
def test_faults_are_sentences(overrides, fault, tmp_path):
    with pytest.raises(PipelineError, match=fault):
        searched(tmp_path, *overrides)


@pytest.mark.slow
def test_a_search_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path):
    def started(runs):
        return forked(*AMC, "amc.episodes=60", f"runs={runs}")

    assert started(tmp_path / "whole").wait() == 0
    (expected,) = Path(tmp_path / "whole").glob("*-amc-*/*/policy.json")
    moments, kills = random.Random(3), 0
    while kills < 4:
        process = started(tmp_path / "killed")
        files = list(Path(tmp_path / "killed").glob("*-amc-*/*/search.safetensors"))
        before = files[0].stat().st_mtime_ns if files else 0
        while not (files := list(Path(tmp_path / "killed").glob("*-amc-*/*/search.safetensors"))) or (
            files[0].stat().st_mtime_ns == before
        ):
            assert process.poll() is None, "the search was over before it was killed"
            time.sleep(0.01)
        time.sleep(moments.random() * 0.2)
        process.kill()
        process.wait()
        kills += 1
    assert started(tmp_path / "killed").wait() == 0
    (found,) = Path(tmp_path / "killed").glob("*-amc-*/*/policy.json")
    assert found.read_text() == expected.read_text()
    assert agents(found) == agents(expected)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mobilenet_v1", "mobilenet_v2", "vgg16"])
def test_plain_and_depthwise_networks_are_searched_too(model, photos, tmp_path):
    chosen = settings(
        "+experiment=amc_digits", f"model={model}", *PHOTOS, f"data.source={photos}", "data.workers=0", "amc.share=0.6",
        "training.batch_size=8", "training.epochs=1", "training.max_steps=1", "amc.agent=uniform", "amc.multiple=8",
    )  # fmt: skip
    job, site = build_job(chosen, tmp_path)
    policy = json.loads(search_job(job, site, chosen, tmp_path).read_text())
    assert 0.4 < policy["macs"] <= 0.6
    assert all(count % 8 == 0 for count in policy["kept"].values())
    assert len(policy["kept"]) == len(job.groups)

"""``task=search``: episode after episode, each on disk when it ends; the best choice becomes a policy file.

    for each episode:
        walk through the layers: what the agent says, with noise, cut down to the budget
        prune so, refit, measure accuracy: that is the reward of every step
        after the warm-up: one update of the agent for each step, on remembered steps
        write the agent and all episodes down

A search continues from its last finished episode, bit for bit: every draw follows from (seed, episode, purpose), and
what the agent remembers follows from the episodes.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.amc import ddpg
from pipeline.amc.ddpg import Agent, Transition
from pipeline.amc.environment import REWARDS, Environment, uniform, walk
from pipeline.amc.problem import Problem
from pipeline.ground.randomness import generator
from pipeline.ground.tensors import read_tensors, write_tensors
from pipeline.pruning.policy import episodes_of
from pipeline.pruning.prune import one_thread
from pipeline.settings.groups import Amc


@dataclass(frozen=True)
class Episode:
    """One finished episode, from 0: what was wished at each step (a share), what was kept, what that cost (in the
    budget's unit), what it was worth.
    """

    number: int
    actions: tuple[float, ...]
    counts: tuple[int, ...]
    accuracy: float
    cost: float
    reward: float
    finished_ms: int


def search(
    problem: Problem, amc: Amc, seed: int, folder: Path, identity: Mapping[str, Any], done: Callable[[Episode], None]
) -> list[Episode]:
    """Runs or continues a search to its end and returns all episodes; ``done`` is told of each, found ones too.

    Raises:
        PipelineError: if what is on disk is damaged.
    """
    path = folder / "search.safetensors"
    environment = problem.environment
    agent = Agent(len(environment.state([])), seed)
    episodes = _read(path, agent)
    for episode in episodes:
        done(episode)
    while len(episodes) < episodes_of(amc):
        number = len(episodes)
        actions, counts = _walked(environment, agent, amc, seed, number)
        accuracy, cost = problem.accurate(counts), environment.cost(counts)
        reward, now = REWARDS[amc.reward](accuracy, cost), time.time_ns() // 1_000_000
        episodes.append(Episode(number, actions, counts, accuracy, cost, reward, now))
        if amc.agent == "ddpg" and number >= amc.warmup:
            _learn(agent, environment, episodes, seed)
        told = json.dumps([dataclasses.asdict(each) for each in episodes])
        write_tensors(path, agent.written(), {"identity": identity, "episodes": told})
        done(episodes[-1])
    return episodes


def chosen(amc: Amc, episodes: Sequence[Episode]) -> Episode:
    """The episode whose choice is the policy: of the agent's the best, the earlier of equals; of chance the median."""
    if amc.agent == "random":
        return sorted(episodes, key=lambda each: each.reward)[(len(episodes) - 1) // 2]
    return max(episodes, key=lambda each: each.reward)


def policy_name(amc: Amc) -> str:
    """What a comparison calls a policy: who found it, and for what."""
    who = {"ddpg": "AMC", "random": "random", "uniform": "uniform"}[amc.agent]
    return f"{who} {amc.reward if amc.share is None else f'{amc.share:g}'} {amc.budget}"


def policy(problem: Problem, amc: Amc, structure: str, episode: Episode) -> dict[str, Any]:
    """What the policy file says: shares by layer, and how they were found."""
    steps = problem.environment.steps
    whole = problem.environment.whole
    return {
        "name": policy_name(amc),
        "structure": structure,
        "shares": {step.name: count / step.size for step, count in zip(steps, episode.counts, strict=True)},
        "kept": dict(zip((step.name for step in steps), episode.counts, strict=True)),
        "of": {step.name: step.size for step in steps},
        "episode": episode.number,
        "episodes": episodes_of(amc),
        "reward": episode.reward,
        "validation_accuracy": episode.accuracy,
        "macs": problem.macs(episode.counts) / problem.macs(whole),
        "parameters": problem.parameters(episode.counts) / problem.parameters(whole),
        "budget": {"of": amc.budget, "share": amc.share, "used": episode.cost / problem.environment.cost(whole)},
    }


def _walked(
    environment: Environment, agent: Agent, amc: Amc, seed: int, number: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Actions and counts of an episode: by chance in the warm-up, then what the agent says, with noise."""
    if amc.agent == "uniform":
        counts = uniform(environment)
        return tuple(c / step.size for c, step in zip(counts, environment.steps, strict=True)), tuple(counts)
    draws = generator(seed, number, "actions")
    actions: list[float] = []

    def act(state: tuple[float, ...]) -> float:
        if amc.agent == "random" or number < amc.warmup:
            actions.append(amc.floor + (1 - amc.floor) * float(torch.rand((), generator=draws)))
        else:
            actions.append(ddpg.noisy(agent.action(state), ddpg.sigma(number - amc.warmup), draws))
        return actions[-1]

    counts = walk(environment, act)
    return tuple(actions), tuple(counts)


@one_thread()
def _learn(agent: Agent, environment: Environment, episodes: Sequence[Episode], seed: int) -> None:
    """One update for each step of the last episode."""
    recent = episodes[-(ddpg.MEMORY // len(environment.steps) or 1) :]
    memory = [each for episode in recent for each in transitions(environment, episode)]
    for update in range(len(environment.steps)):
        draws = generator(seed, episodes[-1].number, "memory", update)
        chosen = torch.randperm(len(memory), generator=draws)[: ddpg.BATCH]
        agent.learn([memory[index] for index in chosen.tolist()])


def transitions(environment: Environment, episode: Episode) -> list[Transition]:
    """An episode's steps; each has the reward of its end.

    Actions are as wished: were they as the wall has cut them down, the agent would never learn what a wish beyond it is
    worth, and would come to wish for everything.
    """
    counts = list(episode.counts)
    states = [environment.state(counts[:index]) for index in range(len(counts))]
    after = [*states[1:], None]
    return [Transition(*each, episode.reward) for each in zip(states, episode.actions, after, strict=True)]


def _read(path: Path, agent: Agent) -> list[Episode]:
    """The episodes on disk; the agent becomes what it was after them."""
    if not path.exists():
        return []
    tensors, metadata = read_tensors(path)
    agent.read(tensors)
    known = json.loads(metadata["episodes"])
    return [Episode(**{**each, **{key: tuple(each[key]) for key in ("actions", "counts")}}) for each in known]

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.amc import ddpg
from pipeline.amc.ddpg import Agent, Transition
from pipeline.amc.environment import REWARDS, Environment, uniform, walk
from pipeline.amc.problem import Problem
from pipeline.ledger import read_tensors, write_file, write_tensors
from pipeline.pruning.prune import one_thread
from pipeline.randomness import generator
from pipeline.settings import Amc


@dataclass(frozen=True)
class Episode:
    """One finished episode, from 0: what each step kept, what that cost (in the budget's unit), what it was worth."""

    number: int
    counts: tuple[int, ...]
    accuracy: float
    cost: float
    reward: float
    finished_ms: int


def search(
    problem: Problem, amc: Amc, seed: int, folder: Path, identity: dict[str, Any], done: Callable[[Episode], None]
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
        act = _actions(agent, amc, seed, number)
        counts = uniform(environment) if amc.agent == "uniform" else walk(environment, act)
        accuracy, cost = problem.accurate(counts), environment.cost(counts)
        reward, now = REWARDS[amc.reward](accuracy, cost), time.time_ns() // 1_000_000
        episodes.append(Episode(number, tuple(counts), accuracy, cost, reward, now))
        if amc.agent == "ddpg" and number >= amc.warmup:
            _learn(agent, environment, episodes, seed)
        told = json.dumps([dataclasses.asdict(each) for each in episodes])
        write_tensors(path, agent.written(), {"identity": identity, "episodes": told})
        done(episodes[-1])
    return episodes


def episodes_of(amc: Amc) -> int:
    """How many episodes there are: one is enough where there is no choice."""
    return 1 if amc.agent == "uniform" else amc.episodes


def chosen(amc: Amc, episodes: Sequence[Episode]) -> Episode:
    """The episode whose choice is the policy: of the agent's the best, the earlier of equals; of chance the median."""
    if amc.agent == "random":
        return sorted(episodes, key=lambda each: each.reward)[(len(episodes) - 1) // 2]
    return max(episodes, key=lambda each: each.reward)


def policy(problem: Problem, amc: Amc, structure: str, episode: Episode) -> dict[str, Any]:
    """What the policy file says: shares by layer, and how they were found."""
    steps = problem.environment.steps
    what = "channels" if structure == "filter" else "weights"
    name = {"ddpg": "AMC", "random": "random", "uniform": "uniform"}[amc.agent]
    whole = problem.environment.whole
    return {
        "name": f"{name} {what}",
        "structure": structure,
        "shares": {step.name: count / step.size for step, count in zip(steps, episode.counts, strict=True)},
        "kept": dict(zip((step.name for step in steps), episode.counts, strict=True)),
        "of": {step.name: step.size for step in steps},
        "episode": episode.number,
        "reward": episode.reward,
        "validation_accuracy": episode.accuracy,
        "macs": problem.macs(episode.counts) / problem.macs(whole),
        "parameters": problem.parameters(episode.counts) / problem.parameters(whole),
        "budget": {"of": amc.budget, "share": amc.share, "used": episode.cost / problem.environment.cost(whole)},
    }


def write_policy(path: Path, content: dict[str, Any]) -> None:
    """Writes a policy file."""
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


def _actions(agent: Agent, amc: Amc, seed: int, number: int) -> Callable[[tuple[float, ...]], float]:
    """What is done at each step of an episode: by chance in the warm-up, then what the agent says, with noise."""
    draws = generator(seed, number, "actions")

    def by_chance(state: tuple[float, ...]) -> float:
        return amc.floor + (1 - amc.floor) * float(torch.rand((), generator=draws))

    def by_agent(state: tuple[float, ...]) -> float:
        return ddpg.noisy(agent.action(state), ddpg.sigma(number - amc.warmup), draws)

    return by_chance if amc.agent == "random" or number < amc.warmup else by_agent


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
    """An episode's steps; each has the reward of its end."""
    counts = list(episode.counts)
    states = [environment.state(counts[:index]) for index in range(len(counts))]
    shares = [count / step.size for count, step in zip(counts, environment.steps, strict=True)]
    after = [*states[1:], None]
    return [Transition(*each, episode.reward) for each in zip(states, shares, after, strict=True)]


def _read(path: Path, agent: Agent) -> list[Episode]:
    """The episodes on disk; the agent becomes what it was after them."""
    if not path.exists():
        return []
    tensors, metadata = read_tensors(path)
    agent.read(tensors)
    return [Episode(**{**each, "counts": tuple(each["counts"])}) for each in json.loads(metadata["episodes"])]

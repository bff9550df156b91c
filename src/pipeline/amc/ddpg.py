"""The agent: deep deterministic policy gradient (Lillicrap et al. 2016) with the settings of He et al. 2018, section 4.

Our own, since three of its parts are none of a library's loop over steps: the reward of an episode is known at its end
and goes to all of its transitions; noise decays by episode; and after any episode the whole agent can be written down
and taken up again, bit for bit.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.ground.randomness import derived_seed
from pipeline.training.state import State, capture, restore

HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
TAU = 0.01
"""Share of the way that the target networks follow in an update."""
BATCH = 64
MEMORY = 2000
"""Transitions that are remembered."""
SIGMA, DECAY = 0.5, 0.95
"""Of the truncated normal noise: at the end of the warm-up, and its factor from episode to episode."""
BASELINE = 0.5
"""Weight of a batch's mean reward in the running mean that is subtracted."""
LAST_LAYER = 3e-3
"""Range of the initial weights of the last layers, so that first actions are near one half."""


@dataclass(frozen=True)
class Transition:
    """What was seen, what was done, what came of it; ``after`` is None at the end of an episode."""

    state: tuple[float, ...]
    action: float
    after: tuple[float, ...] | None
    reward: float


class Agent:
    """Actor and critic with their targets and optimizers. The discount is 1."""

    def __init__(self, features: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "agent"))
            self.actor, self.critic = _layers(features), _layers(features + 1)
        self.networks = {"actor": self.actor, "critic": self.critic}
        self.targets = copy.deepcopy(self.networks)
        rates = {"actor": ACTOR_RATE, "critic": CRITIC_RATE}
        self.optimizers = {name: torch.optim.Adam(n.parameters(), rates[name]) for name, n in self.networks.items()}
        self.baseline: float | None = None

    @torch.no_grad()
    def action(self, state: Sequence[float]) -> float:
        """What the actor does, in (0, 1)."""
        return float(torch.sigmoid(self.actor(torch.tensor([state]))))

    def learn(self, batch: Sequence[Transition]) -> None:
        """One update of critic, actor and targets on a batch of transitions."""
        states = torch.tensor([each.state for each in batch])
        actions, rewards = (torch.tensor([[v] for v in column]) for column in zip(*_numbers(batch), strict=True))
        goes_on = torch.tensor([[float(each.after is not None)] for each in batch])
        after = torch.tensor([each.after or each.state for each in batch])
        mean = float(rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + BASELINE * (mean - self.baseline)

        with torch.no_grad():
            later = _value(self.targets["critic"], after, torch.sigmoid(self.targets["actor"](after)))
            goal = rewards - self.baseline + goes_on * later
        self._step("critic", F.mse_loss(_value(self.critic, states, actions), goal))
        self._step("actor", -_value(self.critic, states, torch.sigmoid(self.actor(states))).mean())
        with torch.no_grad():
            for name, network in self.networks.items():
                for slow, fast in zip(self.targets[name].parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, TAU)

    def _step(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def written(self) -> dict[str, Tensor]:
        """All of the agent, as tensors."""
        tensors = {} if self.baseline is None else {"baseline": torch.tensor(self.baseline, dtype=torch.float64)}
        for name, network in self.networks.items():
            state = capture(network, [self.optimizers[name]])
            tensors |= {f"{name}:{key}": tensor for key, tensor in state.network.items()}
            tensors |= {f"{name} optimizer:{key}": tensor for key, tensor in state.optimizer.items()}
            tensors |= {f"{name} target:{key}": t.clone() for key, t in self.targets[name].state_dict().items()}
        return tensors

    def read(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what ``written`` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

        self.baseline = float(tensors["baseline"]) if "baseline" in tensors else None
        for name, network in self.networks.items():
            state = State(part(f"{name}:"), part(f"{name} optimizer:"))
            network.load_state_dict(dict(state.network))
            restore([self.optimizers[name]], network, state.optimizer)
            self.targets[name].load_state_dict(part(f"{name} target:"))


def sigma(episodes_since_warmup: int) -> float:
    """Width of the noise, so many episodes after the warm-up."""
    return float(SIGMA * DECAY**episodes_since_warmup)


def noisy(action: float, sigma: float, draws: torch.Generator) -> float:
    """A draw from the normal distribution about ``action``, cut off to [0, 1]: by its inverse distribution function."""
    if sigma < 1e-6:
        return action
    low, high = (torch.special.ndtr(torch.tensor((end - action) / sigma, dtype=torch.float64)) for end in (0, 1))
    place = low + (high - low) * torch.rand((), generator=draws, dtype=torch.float64)
    return min(1.0, max(0.0, action + sigma * float(torch.special.ndtri(place))))


def _layers(inputs: int) -> nn.Sequential:
    last = nn.Linear(HIDDEN, 1)
    nn.init.uniform_(last.weight, -LAST_LAYER, LAST_LAYER)
    nn.init.uniform_(last.bias, -LAST_LAYER, LAST_LAYER)
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last)


def _value(critic: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
    value: Tensor = critic(torch.cat([states, actions], 1))
    return value


def _numbers(batch: Sequence[Transition]) -> list[tuple[float, float]]:
    return [(each.action, each.reward) for each in batch]

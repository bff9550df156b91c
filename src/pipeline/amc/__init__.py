"""AMC (He et al. 2018): an agent finds by reinforcement learning how much of each layer a network can lose.

environment   the walk through the layers: states, actions, the wall that keeps the budget, rewards (pure)
costs         what a choice of widths costs: multiply-adds, weights, measured milliseconds (pure but for the clock)
compressed    a trained network under a choice: channels selected, what reads them refit, accuracy measured
ddpg          the agent
search        episodes, one after the other, each on disk when it ends; the best becomes a policy file
"""

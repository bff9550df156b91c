"""A store of many runs, written through MLflow's client, and the time that ``task=compare`` takes over it."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from rich.progress import track

from pipeline.settings.composition import composed
from pipeline.settings.identity import flat
from pipeline.tracking.store import embedded_uri, make_embedded_store

METHODS = ("lr_rewinding", "weight_rewinding", "fine_tuning", "lottery_ticket", "reinitialisation")
NAME = "digits"


def write(runs: Path, parents: int, rounds: int) -> None:
    """Writes so many finished parent runs, each with its settings and ``rounds`` rounds beside round 0."""
    make_embedded_store(runs)
    client = MlflowClient(embedded_uri(runs))
    experiment = client.create_experiment(NAME)
    draws = np.random.default_rng(0)
    for number in track(range(parents), "writing runs"):
        seed, method = divmod(number, len(METHODS))
        settings = flat(composed([f"retraining={METHODS[method]}", f"seed={seed}"]))
        identity = {"seed": str(seed), "method": METHODS[method], "data_digest": "digits", "precision": "float32"}
        parent = client.create_run(experiment, run_name=f"{METHODS[method]}, seed {seed}").info.run_id
        tags = [RunTag(key, value) for key, value in {**identity, "kind": "job"}.items()]
        client.log_batch(parent, params=[Param(key, str(value)) for key, value in settings.items()], tags=tags)
        for index in range(rounds + 1):
            figures = {
                "density": 0.8**index,
                "test_accuracy": 0.99 - 0.002 * index + 0.001 * draws.normal(),
                "validation_accuracy": 0.99 - 0.002 * index,
                "macs_kept": 231_000 * 0.8**index,
                "macs_dense": 231_000,
                "int8_bytes": 5_000 + 13_000 * 0.8**index,
                "float32_bytes": 5_000 + 53_000 * 0.8**index,
            }
            now = time.time_ns() // 1_000_000
            tagged = {**identity, "kind": "round", "round": str(index), "mlflow.parentRunId": parent}
            child = client.create_run(experiment, tags=tagged, run_name=f"round {index:02d}").info.run_id
            client.log_batch(child, metrics=[Metric(key, value, now, index) for key, value in figures.items()])
            client.log_batch(parent, metrics=[Metric(key, value, now, index) for key, value in figures.items()])
            client.set_terminated(child)
        client.set_terminated(parent)


def seconds(runs: Path) -> float:
    """The time of the command, from its start to its end."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "task=compare", f"runs={runs}", f"artifacts={runs}", f"name={NAME}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin

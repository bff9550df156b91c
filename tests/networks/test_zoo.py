"""Every network of the zoo through the whole loop: pruned, retrained for a step, saved, loaded into the plain network."""

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.dataset import Shard
from pipeline.networks import NETWORKS, build_network
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from pipeline.settings.composition import CONF
from tests.conftest import PHOTOS, settings, some_fast

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "custom")


def test_the_table_holds_every_network():
    assert {settings(f"model={model}").model.network for model in MODELS} == set(NETWORKS)
    assert len(MODELS) == 14


@pytest.mark.parametrize("model", some_fast(zip(MODELS), [("mobilenet_v2",), ("lenet_300_100",), ("fast_cnn",)]))
def test_a_network_goes_through_the_loop(model, photos, tmp_path):
    chosen = settings(
        f"model={model}", *PHOTOS, f"data.source={photos}", "data.workers=0", "training.batch_size=8", "training.epochs=1",
        "training.max_steps=1", "pruning.rounds=1",
    )  # fmt: skip
    job, site = build_job(chosen, tmp_path)
    done = rounds.run(job, site)
    pruned = [layer for layer in done[1].layers if layer.prunable]
    total = sum(layer.weights for layer in pruned)
    assert sum(layer.kept for layer in pruned) == total - round(0.2 * total)

    folder = site.ledger.path(1)
    weights, masks = (load_file(folder / f"{name}.safetensors") for name in ("weights", "masks"))
    plain = build_network(chosen.model, job.dataset.example, 2, seed=7)
    plain.load_state_dict(weights, strict=True)
    assert all((plain.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
    trained = [name for name, tensor in site.dense.state(0).network.items() if not torch.equal(tensor, weights[name])]
    assert set(masks) <= set(trained)
    images = next(iter(job.dataset.evaluation("test", Shard()))).inputs
    job.network.load_state_dict(dict(site.ledger.state(1).network))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), job.network.eval()(images), rtol=1e-4, atol=1e-4)

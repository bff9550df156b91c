"""LightningModules of one's own, through the same loop: rates, weights, resuming, dead weights."""

import dataclasses
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from pipeline.data.dataset import Shard
from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.rounds import loop
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import network_after
from pipeline.rounds.job import Watcher
from tests.conftest import settings, some_fast

OWN = ["objective.score=val/accuracy", "objective.better=higher", "training.epochs=3", "deploy.sizes=false"]


def own_job(tmp_path, module, *overrides, watcher=None):
    job, site = build_job(settings(f"model.module=tests.own_modules.{module}", *OWN, *overrides), tmp_path)
    return job, site if watcher is None else dataclasses.replace(site, watcher=watcher)


class Died(Exception):
    pass


class DiesAfter(Watcher):
    """Ends the process's work after an epoch, as a kill would."""

    def __init__(self, index, epochs):
        self.at = (index, epochs)

    def epoch_done(self, index, history):
        if (index, len(history)) == self.at:
            raise Died


@pytest.mark.parametrize(
    "method", some_fast(zip(["lr_rewinding", "weight_rewinding", "fine_tuning"]), [("lr_rewinding",)])
)
def test_a_module_that_does_what_the_shipped_classifier_does_ends_with_the_same_bits(method, tmp_path):
    same = [f"retraining={method}", "training.epochs=3", "pruning.rounds=2", "deploy.sizes=false"]
    shipped = settings("model.arguments.width=4", *same)
    own = settings(
        "model.module=tests.own_modules.Lit", "objective.score=val_accuracy", "objective.better=higher", *same
    )
    for chosen, runs in ((shipped, "shipped"), (own, "own")):
        loop.run(*build_job(chosen, tmp_path / runs))
    for index in range(3):
        folder = "dense/*" if index == 0 else "*-*"
        (one,), (other,) = (
            list((tmp_path / runs).glob(f"{folder}/seed-0/round-{index:02d}")) for runs in ("shipped", "own")
        )
        for name in ("masks", "weights"):
            left, right = load_file(one / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
            assert set(right) == {f"network.{key}" for key in left}
            assert all(torch.equal(right[f"network.{key}"], tensor) for key, tensor in left.items())


@pytest.mark.parametrize("module", ["CycledMomentum", "OnPlateau", "TwoByHand"])
def test_the_first_and_last_step_of_a_rewound_round_see_what_round_0_used_there(module, tmp_path, monkeypatch):
    job, site = own_job(tmp_path, module, "pruning.rounds=1", "retraining=weight_rewinding", "training.epochs=5")
    used = {}

    def spy(optimizer, arguments, named):
        name = type(optimizer).__name__
        groups = [{k: v for k, v in g.items() if k in ("lr", "momentum", "betas")} for g in optimizer.param_groups]
        used.setdefault((round_of[0], name), []).append(groups)

    round_of = [0]

    class Follows(Watcher):
        def round_started(self, index, epochs, done):
            round_of[0] = index

    handle = register_optimizer_step_post_hook(spy)
    try:
        loop.run(job, dataclasses.replace(site, watcher=Follows()))
    finally:
        handle.remove()
    for (index, name), steps in used.items():
        if index == 1:
            dense = used[0, name]
            assert len(steps) == 3 * 19
            assert steps == dense[2 * 19 :]
    assert {index for index, _ in used} == {0, 1}
    rates = [step[0]["lr"] for step in used[0, "SGD"]]
    assert len(set(rates)) > 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Runs that nothing stops, by module: their rounds, and where they lie."""

    @cache
    def run(module):
        job, site = own_job(tmp_path_factory.mktemp("whole"), module, "pruning.rounds=1")
        return loop.run(job, site), site

    return run


@pytest.mark.parametrize("module", ["Plain", "CycledMomentum", "OnPlateau", "TwoByHand", "Averaged", "Remembers"])
@pytest.mark.parametrize("died", some_fast([((0, 2),), ((0, 3),), ((1, 1),)], [((1, 1),)]))
def test_a_killed_run_goes_on_bit_for_bit(module, died, undisturbed, tmp_path):
    expected, whole = undisturbed(module)
    with pytest.raises(Died):
        loop.run(*own_job(tmp_path / "killed", module, "pruning.rounds=1", watcher=DiesAfter(*died)))
    job, site = own_job(tmp_path / "killed", module, "pruning.rounds=1")
    found = loop.run(job, site)
    for one, other in zip(expected, found, strict=True):
        assert one.test == other.test
        assert [e.metrics for e in one.history] == [e.metrics for e in other.history]
        assert [e.rate for e in one.history] == [e.rate for e in other.history]
        assert whole.ledger_of(one.index).digest(one.index) == site.ledger_of(one.index).digest(one.index)


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adafactor", "RMSprop", "Restless", "Muon"])
def test_dead_weights_are_zero_after_every_step_of_any_optimizer(kind, tmp_path):
    job, site = own_job(tmp_path, "AnyOptimizer", f"model.arguments.kind={kind}", "pruning.rounds=1")
    steps = []

    def look(optimizer, arguments, named):
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        trained = [name for name, each in job.network.named_parameters() if kind != "Muon" or each.ndim == 2]
        live.update(zip(trained, parameters, strict=True))
        masks = job.cut(site.dense.state(0).network, job.alive(), 1) if site.dense.read(0) else {}
        for name, mask in ((name, mask) for name, mask in masks.items() if name in live):
            assert (live[name].detach()[~mask] == 0).all()
        steps.append(bool(masks))

    live = {}
    rows = register_optimizer_step_post_hook(look)
    try:
        loop.run(job, site)
    finally:
        rows.remove()
    assert sum(steps) >= 57
    masks, weights = site.ledger.masks(1), site.ledger.state(1).network
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
    assert not all(mask.all() for mask in masks.values())


INFINITE = [("inf", []), ("-inf", ["trainer.gradient_clip_val=0.5"]), ("nan", [])]


@pytest.mark.parametrize(("gradient", "clip"), some_fast(INFINITE, INFINITE[1:2]))
def test_an_infinite_gradient_of_a_dead_weight_is_none(gradient, clip, tmp_path):
    def weights(value):
        job, site = own_job(
            tmp_path / value, "InfiniteGradients", f"model.arguments.of_the_dead='{value}'", "pruning.rounds=1", *clip
        )
        loop.run(job, site)
        return site.ledger.state(1).network, site.ledger.masks(1)

    (found, masks), (expected, _) = weights(gradient), weights("0")
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    assert all(bool((found[name][~mask] == 0).all()) for name, mask in masks.items())


@pytest.mark.parametrize("module", ["Averaged", "GradientsByHand", "NoisyGradients", "NoisyWeights", "DrawsAnew"])
def test_dead_weights_are_zero_whatever_a_module_does(module, tmp_path):
    job, site = own_job(tmp_path, module, "pruning.rounds=1")
    loop.run(job, site)
    masks, weights = site.ledger.masks(1), site.ledger.state(1).network
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
    assert not all(mask.all() for mask in masks.values())


@pytest.mark.slow
def test_the_autoencoder_of_lightnings_introduction_is_pruned_to_a_tenth_by_one_call(tmp_path, capsys):
    from pipeline import prune_by_rewinding
    from tests.own_data import Digits
    from tests.own_modules import LitAutoEncoder

    done = prune_by_rewinding(
        LitAutoEncoder(), Digits(), "objective.score=val_loss", "objective.better=lower", "training.epochs=20",
        "pruning.rounds=null", "pruning.target_density=0.1", "pruning.fraction=0.5", f"runs={tmp_path}",
    )  # fmt: skip
    last = done.rounds[-1]
    assert last.density == pytest.approx(0.1, abs=1e-4)
    assert last.test["test_loss"] < 0.1
    mirrored = done.network()
    alive = sum(int((each.weight != 0).sum()) for each in mirrored.modules() if hasattr(each, "weight"))
    assert alive == sum(int(mask.sum()) for mask in done.site.ledger.masks(last.index).values())
    assert "val_loss" in done.table().splitlines()[0]
    assert "%" not in done.table().splitlines()[2].split("|")[5]
    assert done.figure().axes[0].get_ylabel() == "test loss"
    assert (done.folder / "loss_vs_sparsity.png").exists()
    told = capsys.readouterr().out
    assert "bytes are not measured: the network cannot be exported to ONNX: " in told
    assert 'is missing the required "forward" function' in told


def test_seeds_of_one_module_share_a_fingerprint_and_have_weights_of_their_own(tmp_path):
    sites, weights = [], []
    for seed in (0, 1, 2):
        job, site = own_job(tmp_path, "Plain", f"seed={seed}")
        sites.append(site)
        weights.append(job.initial(0)["network.output.weight"])
    assert {site.ledger.folder for site in sites} == {sites[0].ledger.folder.parent / f"seed-{n}" for n in range(3)}
    assert not torch.equal(weights[0], weights[1])
    _, other = own_job(tmp_path, "AnyOptimizer")
    assert other.ledger.folder.parent != sites[0].ledger.folder.parent


def test_a_module_that_is_built_late_is_pruned(tmp_path):
    job, site = own_job(tmp_path, "BuiltLate", "pruning.rounds=1")
    assert len(loop.run(job, site)) == 2
    assert "network.output.weight" in site.ledger.masks(1)


@pytest.mark.parametrize("method", ["lr_rewinding", "weight_rewinding"])
def test_weights_that_setup_loads_are_those_of_round_0_and_undo_nothing_later(method, tmp_path):
    from tests.own_modules import LoadsInSetup

    job, site = own_job(tmp_path, "LoadsInSetup", f"retraining={method}", "pruning.rounds=2")
    expected = LoadsInSetup()
    expected.setup()
    assert all(torch.equal(job.initial(0)[name], each) for name, each in expected.state_dict().items())
    done = loop.run(job, site)
    for each in done:
        network = LoadsInSetup()
        network.load_state_dict(network_after(job, site, each.index).state_dict())
        batches = list(job.dataset.evaluation("test", Shard()))
        hits = sum(int((network.eval()(batch.inputs).argmax(1) == batch.labels).sum()) for batch in batches)
        assert each.figures["test/accuracy"] == pytest.approx(
            hits / sum(len(batch.labels) for batch in batches), abs=1e-3
        )
    dead = [int((~site.ledger.masks(2)[name]).sum()) for name in site.ledger.masks(2)]
    zeros = [int((site.ledger.state(2).network[name] == 0).sum()) for name in site.ledger.masks(2)]
    assert zeros == dead


def test_a_change_after_setup_and_a_test_by_another_name_are_told(tmp_path):
    changed, _ = own_job(tmp_path, "ShakesAtTheStart")
    assert any("ShakesAtTheStart changes weights when a training starts" in note for note in changed.notes)
    tested, _ = own_job(tmp_path, "TestsByAnotherName")
    assert any("logs final/hits, of which objective.test_score=NAME" in note for note in tested.notes)


def test_parameters_that_are_replaced_in_a_training_are_a_sentence(tmp_path):
    with pytest.raises(PipelineError, match=r"round 0, epoch 2: network.output.weight was made anew in training"):
        loop.run(*own_job(tmp_path, "ReplacesLater"))


class Listens(Watcher):
    def __init__(self):
        self.told = []

    def note(self, sentence):
        self.told.append(sentence)


@pytest.mark.parametrize(("hold", "told"), [("last", True), ("0.1", False)])
def test_a_rate_held_so_low_that_it_is_no_training_is_told(hold, told, tmp_path):
    watcher = Listens()
    job, site = own_job(
        tmp_path, "CycledMomentum", "retraining=fine_tuning", f"retraining.hold={hold}", "pruning.rounds=1",
        watcher=watcher,
    )  # fmt: skip
    loop.run(job, site)
    assert any("next to no training; retraining.hold=0.1 holds a tenth" in each for each in watcher.told) == told
    tape = site.dense.tape().numbers["0|0|lr"]
    expected = float(tape[-1] if hold == "last" else 0.1 * tape.max())
    assert {epoch.rate for epoch in site.ledger.read(1).history} == {expected}


@pytest.mark.parametrize("module", ["Lit", "Plain"])
@pytest.mark.parametrize("data", ["Digits", "Noisy"])
def test_module_and_data_of_either_package_go_together(module, data, tmp_path):
    score = "val_accuracy" if module == "Lit" else "val/accuracy"
    job, site = own_job(
        tmp_path, module, f"data.module=tests.own_data.{data}", f"objective.score={score}", "pruning.rounds=1",
        "training.epochs=1",
    )  # fmt: skip
    assert len(loop.run(job, site)) == 2


def test_no_round_inherits_what_another_left_in_a_module(tmp_path):
    """Of a module that counts its steps, round 1 alone is what it is after round 0."""
    watcher = Listens()
    job, site = own_job(tmp_path / "one", "Counts", "pruning.rounds=1", watcher=watcher)
    loop.run(job, site)
    assert any("Counts changes steps, which no state dict holds" in each for each in job.notes)
    job, site = own_job(tmp_path / "two", "Counts", "pruning.rounds=0")
    loop.run(job, site)
    job, site = own_job(tmp_path / "two", "Counts", "pruning.rounds=1")
    loop.run(job, site)
    (one,), (two,) = ((tmp_path / name).glob("*-*/seed-0") for name in ("one", "two"))
    for name in ("weights", "masks"):
        left, right = (load_file(folder / "round-01" / f"{name}.safetensors") for folder in (one, two))
        assert all(torch.equal(left[key], tensor) for key, tensor in right.items())


def test_nothing_is_said_of_what_the_compilation_of_a_part_keeps(tmp_path):
    job, _ = own_job(tmp_path, "CompilesAPart", "pruning.rounds=0")
    assert not any("no state dict" in each for each in job.notes)


def test_callbacks_and_code_that_want_a_logger_have_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job, site = own_job(tmp_path / "runs", "Watched", "pruning.rounds=1")
    assert len(loop.run(job, site)) == 2
    assert [each.name for each in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("LogsOnce", "objective.score: val/accuracy was not logged in the last epoch of round 0; takes one"),
        ("EndsInNan", "round 0, epoch 3: .* is no finite number any more: the training has diverged"),
    ],
)
def test_what_goes_wrong_later_in_a_training_is_a_sentence(module, sentence, tmp_path):
    job, site = own_job(tmp_path, module)
    with pytest.raises(PipelineError, match=sentence):
        loop.run(job, site)


FAULTS = {
    "StopsEarly": ([], r"trainer: EarlyStopping ends a training before its time"),
    "Averages": ([], r"trainer: StochasticWeightAveraging .*; takes EMAWeightAveraging or WeightAveraging"),
    "Thaws": ([], r"trainer: BaseFinetuning changes within a training what is trained"),
    "PrunesItself": ([], r"trainer: ModelPruning prunes beside the pipeline; takes a module without it"),
    "SecondOrder": ([], r"LBFGS remembers more than tensors and numbers .*; takes an optimizer such as SGD or AdamW"),
    "Lazy": ([], r"network: network.1.weight has no shape before a first call; takes layers that are not lazy"),
    "OnPlateau": (
        ["objective.score=test/accuracy"],
        r"got 'test/accuracy', a figure of the test split; takes one of val",
    ),
    "CycledMomentum": (
        ["training.batch_size=7", "training/schedule=cosine"],
        r"training.batch_size=7: a LightningModule brings",
    ),
    "Plain": (
        ["objective.score=val_acc"],
        r"objective.score: got 'val_acc', takes one of those that Plain logs: .*val_loss",
    ),
    "ReplacesInSetup": ([], r"makes network.output.bias anew when a training starts.*; takes a module that makes its"),
    "AddsInSetup": ([], r"AddsInSetup makes network.mean anew when a training starts"),
    "ReplacesInConfigure": ([], r"ReplacesInConfigure makes network.*anew when a training starts"),
    "CompilesLate": ([], r"CompilesLate makes network.*anew when a training starts.*compile it: module.compile\(\)"),
    "Lit": (["objective.better=null"], r"objective.better: got null, takes higher or lower"),
}


@pytest.mark.parametrize("module", FAULTS)
def test_what_cannot_be_is_a_sentence_before_training(module, tmp_path):
    overrides, sentence = FAULTS[module]
    with pytest.raises(SettingsError, match=sentence):
        own_job(tmp_path, module, *overrides)
    assert not list(tmp_path.iterdir())


def test_a_callback_that_ends_a_training_early_is_a_sentence(tmp_path, monkeypatch):
    from tests.own_modules import Plain

    job, site = own_job(tmp_path, "Plain")

    def stop(self):
        self.trainer.should_stop = True

    monkeypatch.setattr(Plain, "on_train_epoch_end", stop)
    with pytest.raises(PipelineError, match="round 0 was stopped after epoch 1 of 3"):
        loop.run(job, site)

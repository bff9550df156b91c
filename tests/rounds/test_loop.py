"""The loop over rounds: what each method's first step sees, and that stopping anywhere changes nothing."""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import shutil
from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline.ground.errors import PipelineError, SettingsError
from pipeline.pruning.masks import kept, ones_like
from pipeline.pruning.prune import prune
from pipeline.rounds import loop as rounds
from pipeline.rounds.building import build_job
from pipeline.rounds.choice import chosen, ended, wanted
from pipeline.rounds.job import Watcher, Watchers
from pipeline.rounds.ledger import Ledger
from pipeline.rounds.planning import planned
from pipeline.training.schedule import scheduled
from pipeline.training.state import capture, masked
from tests.conftest import settings, some_fast

METHODS = [
    "lr_rewinding", "weight_rewinding", "lottery_ticket", "fine_tuning", "weight_rewinding_low_rate", "reinitialisation",
]  # fmt: skip
SCHEDULES = {
    "step": ["training/schedule=step"],
    "step, warm-up": ["training/schedule=step", "training.schedule.warmup=0.2"],
    "cosine": ["training/schedule=cosine"],
    "cosine, warm-up": ["training/schedule=cosine", "training.schedule.warmup=0.2"],
    "one cycle": ["training/schedule=one_cycle"],
}


class Stop(BaseException):
    """A death that nothing handles."""


class Watch(Watcher):
    """Remembers what it is told, and dies after a number of epochs."""

    def __init__(self, dies_after=None):
        self.epochs, self.trained, self.notes, self.dies_after = 0, [], [], dies_after

    def epoch_done(self, index, history):
        self.epochs += 1
        if self.epochs == self.dies_after:
            raise Stop

    def round_done(self, result, folder, *, trained):
        self.trained += [result.index] if trained else []

    def note(self, sentence):
        self.notes.append(sentence)


def content(folder):
    """Every file of the ledgers in a folder; of the records all but the clock."""
    files = {}
    for path in sorted(set(folder.rglob("*")) - set(folder.glob("mlflow/**/*"))):
        if path.name == "round.json":
            record = json.loads(path.read_text())
            for clocked in (record, *record["history"]):
                for key in ("seconds", "finished_ms"):
                    clocked.pop(key)
            files[path.relative_to(folder)] = record
        elif path.suffix == ".safetensors":
            files[path.relative_to(folder)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


@contextmanager
def first_steps(network):
    """Of every training: the state dict, momentum and rate that its first optimizer step finds."""
    seen, optimizers = [], []

    def before_step(optimizer, arguments, named):
        if not any(optimizer is known for known in optimizers):
            optimizers.append(optimizer)
            state = capture(network, [optimizer])
            seen.append((state.network, state.optimizer, optimizer.param_groups[0]["lr"]))

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        yield seen
    finally:
        hook.remove()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


EACH_ONCE = list(zip(METHODS, itertools.cycle(SCHEDULES)))


@pytest.mark.parametrize(("method", "schedule"), some_fast(itertools.product(METHODS, SCHEDULES), EACH_ONCE))
def test_what_the_first_step_of_a_round_sees(method, schedule, small_job):
    job, site = small_job(f"retraining={method}", *SCHEDULES[schedule], "pruning.rounds=1", "training.epochs=3")
    with first_steps(job.network) as seen:
        rounds.run(job, site)
    assert len(seen) == 2
    weights, momentum, rate = seen[-1]

    final, masks = site.dense.state(0), site.ledger.masks(1)
    epoch = {"weight_rewinding": 1, "weight_rewinding_low_rate": 1}.get(method, 0)
    match method:
        case "lr_rewinding" | "fine_tuning":
            expected, remembered = final.network, masked(final, masks).optimizer
        case "weight_rewinding" | "weight_rewinding_low_rate":
            point = site.dense.rewind_point(epoch)
            expected, remembered = point.network, masked(point, masks).optimizer
        case "lottery_ticket":
            expected, remembered = job.initial(0), {}
        case "reinitialisation":
            expected, remembered = job.initial(1), {}
    if method in ("weight_rewinding", "weight_rewinding_low_rate"):
        assert remembered, "momentum goes back with the weights"
        assert not torch.equal(expected["output.weight"], final.network["output.weight"])
    for name, tensor in weights.items():
        mask = masks.get(name, torch.ones(tensor.shape, dtype=torch.bool))
        assert torch.equal(tensor, torch.where(mask, expected[name], torch.zeros_like(expected[name]))), name
    assert same(momentum, dict(remembered))
    last = method in ("fine_tuning", "weight_rewinding_low_rate")
    position = job.dense_span.total_steps - 1 if last else epoch * job.dense_span.steps_per_epoch
    assert rate == scheduled(job.training.schedule, 0.1, job.dense_span.total_steps)(position)


def test_a_setting_resets_the_optimizer(small_job):
    job, site = small_job("retraining.optimizer_state=reset", "pruning.rounds=1")
    with first_steps(job.network) as seen:
        rounds.run(job, site)
    assert len(seen) == 2
    assert seen[-1][1] == {}


def test_masks_follow_the_count_rule_from_the_last_rounds_weights_and_results_load_into_the_plain_network(
    small_job,
):
    job, site = small_job("pruning.rounds=3")
    done = rounds.run(job, site)
    masks = ones_like({name: job.initial(0)[name] for name in site.ledger.masks(1)})
    masks = {name: masks[name] for name in dict(job.network.named_parameters()) if name in masks}
    for index in (1, 2, 3):
        previous = (site.dense if index == 1 else site.ledger).state(index - 1).network
        masks = prune({name: previous[name].abs() for name in masks}, masks, fraction=0.2)
        assert same(masks, {name: site.ledger.masks(index)[name] for name in masks})
        state = site.ledger.state(index)
        assert all((state.network[name][~mask] == 0).all() for name, mask in masks.items())
        assert sum(layer.kept for layer in done[index].layers) == kept(masks)
        job.network.load_state_dict(dict(state.network), strict=True)


RANDOM = ["data.flip=true", "data.crop_padding=1", "pruning.criterion=random"]
STOPPED = {
    "lr_rewinding": ["retraining=lr_rewinding", *RANDOM],
    "weight_rewinding": ["retraining=weight_rewinding", *RANDOM],
    "reinitialisation": ["retraining=reinitialisation", *RANDOM],
    "soup": ["+method=soup", "retraining.copies=2", "data.flip=alternate", "training.teacher=previous"],
    "gradual": ["+method=gradual", "retraining.length=2", "training.ema=0.9", "training.max_steps=null"],
}


@pytest.mark.parametrize("method", some_fast(zip(STOPPED), [("lr_rewinding",), ("weight_rewinding",)]))
def test_stopping_after_any_epoch_changes_nothing(method, small_job, tmp_path):
    settings = STOPPED[method]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rounds.run(*small_job(*settings, runs=whole))
    stops = 0
    while True:
        watch = Watch(dies_after=1)
        job, site = small_job(*settings, runs=stopped, watchers=(watch,))
        try:
            rounds.run(job, site)
        except Stop:
            stops += 1
            assert content(stopped) != content(whole)
        else:
            break
    assert stops == 3 + 2 * job.epochs_a_round
    assert not list(stopped.rglob("partial*"))
    assert content(stopped) == content(whole)


def test_a_kill_just_after_a_record_leaves_nothing_behind(small_job, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rounds.run(*small_job(runs=whole))
    for _ in range(3):  # round 0, 1 and 2
        clear, records = Ledger.clear, len(list(stopped.rglob("round.json")))

        def killed(ledger, index, clear=clear, records=records):
            if len(list(stopped.rglob("round.json"))) > records:
                raise Stop
            clear(ledger, index)

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "clear", killed)
            with pytest.raises(Stop):
                rounds.run(*small_job(runs=stopped))
        assert list(stopped.rglob("partial.safetensors"))
    rounds.run(*small_job(runs=stopped))
    assert content(stopped) == content(whole)


def test_when_all_is_complete_nothing_is_trained_and_more_rounds_continue(small_job, tmp_path):
    direct, lengthened = tmp_path / "direct", tmp_path / "lengthened"
    rounds.run(*small_job("pruning.rounds=3", runs=direct))
    trained = []
    for count in (1, 1, 3):
        watch = Watch()
        rounds.run(*small_job(f"pruning.rounds={count}", runs=lengthened, watchers=(watch,)))
        trained.append(watch.trained)
    assert trained == [[0, 1], [], [2, 3]]
    assert content(lengthened) == content(direct)


def test_the_dense_network_is_trained_once_and_a_rewind_point_that_was_not_kept_is_recomputed(small_job, tmp_path):
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    first, second = Watch(), Watch()
    rounds.run(*small_job("retraining=lr_rewinding", runs=shared, watchers=(first,)))
    job, site = small_job("retraining=weight_rewinding", runs=shared, watchers=(second,))
    assert site.dense.rewind_points() == []
    rounds.run(job, site)
    assert (first.trained, second.trained) == ([0, 1, 2], [1, 2])
    assert any("training round 0 again from epoch 0 to 1" in note for note in second.notes)
    job, kept_at_once = small_job("retraining=weight_rewinding", runs=alone)
    rounds.run(job, kept_at_once)
    assert site.dense.rewind_points() == kept_at_once.dense.rewind_points() == [1]
    assert content(site.ledger.folder) == content(kept_at_once.ledger.folder)
    assert content(site.dense.folder) == content(kept_at_once.dense.folder)


@pytest.mark.parametrize("dies_after", some_fast(zip([1, 2, 3]), [(1,)]))
def test_a_rewind_point_that_is_trained_again_goes_on_after_a_kill(dies_after, small_job, tmp_path, monkeypatch):
    longer = ["training.epochs=5", "training.max_steps=null", "retraining.length=0.4", "pruning.rounds=1"]
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    rounds.run(*small_job("retraining=lr_rewinding", *longer, runs=shared))
    job, site = small_job("retraining=weight_rewinding", *longer, runs=shared)
    assert job.span.first == 3
    write, written = Ledger.write_partial, []

    def writes_and_dies(ledger, index, reached, history, *name):
        write(ledger, index, reached, history, *name)
        written.append(name)
        if len(written) == dies_after:
            raise Stop

    monkeypatch.setattr(Ledger, "write_partial", writes_and_dies)
    with pytest.raises(Stop):
        rounds.run(job, site)
    monkeypatch.setattr(Ledger, "write_partial", write)
    watch = Watch()
    job, site = small_job("retraining=weight_rewinding", *longer, runs=shared, watchers=(watch,))
    rounds.run(job, site)
    assert any(f"training round 0 again from epoch {dies_after} to 3" in note for note in watch.notes)
    job, kept_at_once = small_job("retraining=weight_rewinding", *longer, runs=alone)
    rounds.run(job, kept_at_once)
    assert content(site.ledger.folder) == content(kept_at_once.ledger.folder)
    assert content(site.dense.folder) == content(kept_at_once.dense.folder)


def test_target_density_is_met_to_the_weight(small_job):
    job, site = small_job("pruning.rounds=null", "pruning.target_density=0.55", "training.epochs=1")
    done = rounds.run(job, site)
    total = sum(layer.weights for layer in done[0].layers)
    assert [sum(layer.kept for layer in r.layers) for r in done] == [
        total, round(total * 0.8), round(round(total * 0.8) * 0.8), round(0.55 * total),
    ]  # fmt: skip
    assert [r.density for r in done] == planned(job)


def test_an_accuracy_floor_stops_and_the_smallest_round_within_it_is_chosen(small_job):
    job, site = small_job(
        "pruning.rounds=null", "pruning.max_score_drop=0.1", "pruning.fraction=0.7", "training.epochs=8",
        "training.max_steps=null",
    )  # fmt: skip
    done = rounds.run(job, site)
    accuracies = [r.figures["validation_accuracy"] for r in done]
    assert accuracies[-1] < accuracies[0] - 0.1
    assert all(accuracy >= accuracies[0] - 0.1 for accuracy in accuracies[:-1])
    assert chosen(done, job).index == len(done) - 2


def test_the_round_that_counts_is_one_before_the_first_under_the_floor(small_job):
    """Whatever lies beyond: an earlier call without a floor may have gone on."""
    job, site = small_job("pruning.max_score_drop=0.1", "pruning.rounds=4", "training.max_steps=2")
    (first, *_) = rounds.run(dataclasses.replace(job, pruning=dataclasses.replace(job.pruning, rounds=0)), site)

    def scored(index, score):
        epoch = dataclasses.replace(first.history[-1], metrics={job.score.validation: score})
        return dataclasses.replace(first, index=index, history=(epoch,))

    found = [scored(index, score) for index, score in enumerate([0.9, 0.85, 0.5, 0.95])]
    assert chosen(found, job).index == wanted(found, None, job).index == 1
    for index in (4, -1, "1", 1.0, True):
        with pytest.raises(
            SettingsError, match=rf"deploy.round: got {index!r}, takes 0 to 3, the rounds that are complete"
        ):
            wanted(found, index, job)
    with pytest.raises(
        PipelineError, match=r"pruning.max_score_drop: got 0.1, but validation_accuracy of the dense .* nan"
    ):
        chosen([scored(0, math.nan), scored(1, 0.9)], job)


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["pruning.fraction=null", "pruning.rounds=4", "pruning.target_density=0.3"], 4286),
        (["pruning.fraction=null", "pruning.rounds=5", "pruning.target_density=0.05"], 714),
        (["pruning.fraction=null", "pruning.rounds=5", "pruning.target_density=0.05", "pruning.scope=erk"], 714),
        (["pruning.fraction=0.25", "pruning.rounds=3", "pruning.target_density=0.421875"], 6028),
    ],
)
def test_the_last_round_on_the_way_to_a_target_meets_it_to_the_weight(overrides, left, small_job):
    job, _ = small_job("model.arguments.width=16", *overrides)
    masks, densities = job.alive(), [1.0]
    size = kept(masks)
    for index in range(1, job.pruning.rounds + 1):
        masks = job.cut_of_zeros(masks, index)
        densities.append(kept(masks) / size)
    assert (size, kept(masks)) == (14_288, left)
    assert left == round(job.pruning.target_density * size)
    assert planned(job) == densities


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["pruning.fraction=1e-5"],
            r"pruning.fraction: got 1e-05, by which none of the 980 weights goes; takes more",
        ),
        (
            ["pruning.fraction=1e-4", "pruning.scope=layer"],
            r"got 0.0001, .* of the 576 weights of the largest layer goes",
        ),
        (
            ["pruning.target_density=0.99999"],
            r"pruning.target_density: got 0.99999, at which none of the 980 weights",
        ),
    ],
)
def test_a_round_that_would_remove_nothing_is_a_sentence_before_training(overrides, sentence, small_job, tmp_path):
    with pytest.raises(SettingsError, match=sentence):
        small_job(*overrides)
    assert not list(tmp_path.iterdir())


def test_excluded_layers_keep_all_their_weights(small_job):
    job, site = small_job("pruning.exclude=[output,features.0]", "pruning.rounds=1")
    result = rounds.run(job, site)[-1]
    assert {layer.name for layer in result.layers if not layer.prunable} == {"output", "features.0"}
    assert all(layer.kept == layer.weights for layer in result.layers if not layer.prunable)
    assert result.density == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "outcome"),
    [("warn", "note"), ("error", "error"), ("0.05", "kept")],
)
def test_a_layer_about_to_lose_its_last_weight(setting, outcome, small_job):
    watch = Watch()
    job, site = small_job(
        "pruning.fraction=0.95",
        "pruning.rounds=1",
        f"pruning.empty_layer={setting}",
        "training.optimizer.rate=1e-12",
        watchers=(watch,),
    )
    initial = job.initial

    def shrunk(attempt):
        weights = dict(initial(attempt))
        weights["output.weight"] = weights["output.weight"] * 1e-9
        return weights

    job = rounds.dataclasses.replace(job, initial=shrunk)
    sentence = r"round 1 removes the last weight of .*output"
    if outcome == "error":
        with pytest.raises(PipelineError, match=sentence):
            rounds.run(job, site)
        return
    done = rounds.run(job, site)
    left = {layer.name: layer.kept for layer in done[-1].layers}["output"]
    assert left == (0 if outcome == "note" else 4)
    assert any(re.search(sentence, note) for note in watch.notes) is (outcome == "note")


@pytest.mark.parametrize("setting", ["warn", "error"])
def test_a_layer_that_gradual_pruning_empties_is_told_of_by_the_masks_that_are_trained_with(setting, small_job):
    """They are cut of weights within the round, which rewound are others than those at the end of the one before."""
    watch = Watch()
    job, site = small_job(
        "retraining=lottery_ticket", "pruning=gradual", "pruning.rounds=1", "pruning.fraction=null",
        "pruning.target_density=0.5", f"pruning.empty_layer={setting}", "training.optimizer.rate=1e-12",
        watchers=(watch,),
    )  # fmt: skip
    rounds.dense_round(job, site)
    initial = job.initial

    def shrunk(attempt):
        weights = dict(initial(attempt))
        return weights | {"output.weight": weights["output.weight"] * 1e-9}

    job = rounds.dataclasses.replace(job, initial=shrunk)
    sentence = "round 1 removes the last weight of output"
    if setting == "error":
        for _ in range(2):
            with pytest.raises(PipelineError, match=sentence):
                rounds.run(job, site)
        assert site.ledger.read(1) is None
        return
    done = rounds.run(job, site)
    assert {layer.name: layer.kept for layer in done[-1].layers}["output"] == 0
    assert sum(sentence in note for note in watch.notes) == 1


def test_a_run_that_nothing_but_its_floor_would_end_has_ended_where_nothing_is_left_to_go(small_job):
    job, site = small_job(
        "pruning.rounds=null", "pruning.max_score_drop=1", "pruning.fraction=0.9", "training.epochs=1"
    )
    done = rounds.run(job, site)
    assert kept(site.ledger.masks(len(done) - 1)) < 10
    assert ended(job, site, done)
    assert not ended(job, site, done[:-1])


class OwnNetwork(torch.nn.Module):
    """A user's: no BatchNorm, dropout, a layer that is called twice, one that is frozen."""

    def __init__(self, hidden):
        super().__init__()
        self.inputs = torch.nn.Linear(64, hidden)
        self.again = torch.nn.Linear(hidden, hidden)
        self.frozen = torch.nn.Linear(hidden, hidden).requires_grad_(False)
        self.outputs = torch.nn.Linear(hidden, 10)

    def forward(self, x):
        x = torch.dropout(self.inputs(x.flatten(1)).relu(), 0.2, self.training)
        return self.outputs(self.frozen(self.again(self.again(x).relu())))


@pytest.mark.slow
def test_a_users_own_network_by_dotted_path_continues_bit_for_bit_too(small_job, tmp_path):
    def own(runs, *watchers):
        chosen = settings(
            "model=custom", "model.network=tests.rounds.test_loop.OwnNetwork", "++model.arguments={hidden: 7}",
            "training.epochs=2", "pruning.rounds=1", "training/optimizer=adamw",
        )  # fmt: skip
        job, site = build_job(chosen, runs)
        return job, rounds.dataclasses.replace(site, watcher=Watchers(*watchers))

    done = rounds.run(*own(tmp_path / "whole"))
    assert {layer.name: layer.macs for layer in done[0].layers} == {
        "inputs": 64 * 7, "again": 2 * 49, "frozen": 49, "outputs": 70,
    }  # fmt: skip
    for _ in range(3):
        with pytest.raises(Stop):
            rounds.run(*own(tmp_path / "stopped", Watch(dies_after=1)))
    rounds.run(*own(tmp_path / "stopped"))
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_the_same_command_in_another_folder_gives_the_same_bits(small_job, tmp_path):
    jobs = [small_job(runs=tmp_path / name) for name in ("a", "b")]
    for job, site in jobs:
        rounds.run(job, site)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    shutil.rmtree(tmp_path / "b")
    rounds.run(*small_job("seed=1", runs=tmp_path / "b"))
    weights = [content(tmp_path / name) for name in ("a", "b")]
    assert not set(map(str, weights[0])) & set(map(str, weights[1]))

"""Names of users in MLflow, held against MLflow's own checks."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils import validation

from pipeline.tracking.names import grouped, known_as, text_of, without_secrets


@given(st.text(max_size=300) | st.text("/.a", max_size=9) | st.text(string.printable, max_size=300))
def test_mlflow_takes_every_name(name):
    called = known_as(name)
    for check in ("metric", "param", "tag"):
        getattr(validation, f"_validate_{check}_name")(called)
    assert len(called) <= validation.MAX_ENTITY_KEY_LENGTH


@pytest.mark.parametrize(
    "name", ["validation_accuracy", "val/mAP", "model.arguments.width", "a b", "changed.seed", "Größe"]
)
def test_a_name_that_mlflow_takes_is_itself(name):
    assert known_as(name) == name


@pytest.mark.parametrize(
    ("name", "called"),
    [("mAP@50", "mAP_40_50"), ("pruning.shares.blocks[0].*", "pruning.shares.blocks_5b_0_5d_._2a_"), ("/a", "_2f_a"),
     ("a//b", "a_2f__2f_b"), ("f1 (%)", "f1 _28__25__29_"), ("", "_"), ("..", "_2e__2e_")],
)  # fmt: skip
def test_others_are_coded(name, called):
    assert known_as(name) == called


SECRET = {
    "http://me:secret@host:5000": "http://me:***@host:5000",
    "postgresql://me:sec/r@et@host/db": "postgresql://me:***@host/db",
    "https://:secret@host/": "https://:***@host/",
    "postgresql://host/db?user=me&password=secret": "postgresql://host/db?user=me&password=***",
    "https://host/?access_token=secret&x=1": "https://host/?access_token=***&x=1",
    "http://host:5000": "http://host:5000",
    "sqlite:////a/b.db": "sqlite:////a/b.db",
    "databricks": "databricks",
}


@pytest.mark.parametrize("uri", SECRET)
def test_no_password_stands_in_an_address_that_is_shown(uri):
    assert without_secrets(uri) == SECRET[uri]


def test_what_is_too_long_stays_apart():
    one, other = known_as("x" * 400 + "1"), known_as("x" * 400 + "2")
    assert len(one) == 250
    assert one != other
    assert len(text_of("y" * 9000)) == 6000


@pytest.mark.parametrize(
    ("figure", "shown_as"),
    [("test_accuracy", "test/accuracy"), ("validation_top5_accuracy", "validation/top5_accuracy"), ("val_loss", "val/loss"),
     ("val/mAP", "val/mAP"), ("test_", "test_"), ("density", "pruning/density"), ("int8_bytes", "size/int8_bytes"),
     ("int8_score", "test/int8_score"),
     ("epoch_seconds", "train/epoch_seconds"), ("sparse_int8_latency_ms", "cost/sparse_int8_latency_ms"), ("F1", "F1")],
)  # fmt: skip
def test_figures_stand_in_groups(figure, shown_as):
    assert grouped(figure) == shown_as


def test_two_figures_never_share_a_name():
    both = {"val_loss": 1.0, "val/loss": 2.0}
    assert {grouped(figure, both) for figure in both} == set(both)

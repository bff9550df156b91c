"""The store in the runs folder: made of tables that are kept, it is what MLflow itself would have made."""

import re
import sqlite3
import time
from contextlib import closing

from mlflow import MlflowClient

from pipeline.tracking.store import embedded_uri, make_embedded_store, sqlite_uri


def schema(database):
    with closing(sqlite3.connect(database)) as opened:
        found = opened.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    return {
        (kind, name): sorted(re.split(r",?\s+", sql or "")) for kind, name, sql in found
    }  # in MLflow's chance order


def rows(database):
    with closing(sqlite3.connect(database)) as opened:
        tables = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: opened.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables}


def test_it_is_what_mlflow_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = int(time.time() * 1000)
    for folder in ("one", "another"):  # the second for sure of the tables that are kept
        make_embedded_store(tmp_path / folder)
    ours = tmp_path / "another" / "mlflow" / "mlflow.db"
    own = tmp_path / "own.db"
    MlflowClient(sqlite_uri(own)).search_experiments()
    assert schema(ours) == schema(own)
    found, expected = rows(ours), rows(own)
    (default,), (known,) = found.pop("experiments"), expected.pop("experiments")
    assert found == expected
    made = [value for value, other in zip(default, known, strict=True) if value != other]
    assert all(begin <= value <= time.time() * 1000 for value in made), "only when it was made is its own"
    assert MlflowClient(embedded_uri(tmp_path / "another")).get_experiment("0").name == "Default"

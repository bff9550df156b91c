"""What run.py, which runs alone on a board, shares with the package."""

import ast
import dataclasses

from pipeline.deploy import bundle, export, manifest, runtime
from pipeline.deploy.board import run

SOURCE = ast.parse(bundle.PROGRAM[0].read_text())


def keys_of(name):
    """Every key by which run.py reads a mapping of this name."""
    return {
        node.slice.value
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == name
        if isinstance(node.slice, ast.Constant)
    }


def test_what_it_reads_of_a_manifest_is_there():
    fields = {field.name for field in dataclasses.fields(manifest.Manifest)}
    read = keys_of("manifest")
    assert {"models", "engine", "onnxruntime", "classes", "input"} <= read <= fields


def test_it_makes_sessions_as_the_package_does():
    assert runtime.options is run.options
    assert manifest.FILE in {node.value for node in ast.walk(SOURCE) if isinstance(node, ast.Constant)}
    called = [
        node.args[1]
        for node in ast.walk(SOURCE)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "run"
    ]
    assert len(called) >= 5
    assert {ast.literal_eval(each.keys[0]) for each in called} == {export.INPUT}


def test_its_files_import_nothing_of_the_package():
    names = {
        name
        for file in bundle.PROGRAM
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert not [name for name in names if name.startswith("pipeline")]

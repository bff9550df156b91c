"""A digest of what code does, for networks and data that no setting describes.

Two modules that behave differently have different digests: of the source of their classes, of what every part of them
is set to, and of what they answer. When in doubt they differ; the same one has the same digest in every process.
"""

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.ground.errors import LIBRARIES
from pipeline.ground.randomness import seed_all, undisturbed
from pipeline.ground.tensors import update_digest
from pipeline.networks.given import own_parts

DEPTH = 6
"""How deep values within values are looked at."""
PASSING = {"training", "trainer", "_trainer", "prepare_data_per_node", "call_super_init"}
"""Attributes that say nothing of behaviour."""


def behaviour_digest(thing: object, answers: Callable[[], Any] | None = None) -> str:
    """SHA-256 over the source, the settings and, where it can be asked, the ``answers`` of a module or of data."""
    sha = hashlib.sha256()
    seen: dict[int, object] = {}
    parts = own_parts(thing) if isinstance(thing, nn.Module) else [("", thing)]
    for name, part in parts:
        sha.update(f"{name}:".encode())
        _take(sha, part, seen, DEPTH)
    if answers is not None:
        with undisturbed():
            seed_all("behaviour")
            try:
                update_digest(sha, answers())
            except Exception as error:
                sha.update(type(error).__name__.encode())
    return sha.hexdigest()


def answers_of(network: nn.Module, call: Callable[[nn.Module], Any]) -> Callable[[], Any]:
    """What a network answers a call in evaluation and in training, which leaves it as it was."""

    def ask() -> list[Any]:
        before = {name: each.clone() for name, each in network.state_dict().items() if isinstance(each, Tensor)}
        training = {module: module.training for module in network.modules()}
        found = []
        try:
            with torch.no_grad():
                found.append(_summary(call(network.eval())))
                for module, was in training.items():
                    module.training = was
                found.append(_summary(call(network)))
        finally:
            for module, was in training.items():
                module.training = was
            network.load_state_dict(before, strict=False)
        return found

    return ask


def _summary(answer: Any) -> Any:
    """An answer without what differs from processor to processor: of tensors the shape, and the size of their numbers
    to two digits."""
    if isinstance(answer, Tensor):
        numbers = answer.detach().double().abs() if answer.dtype != torch.bool else answer.double()
        return [str(answer.dtype), *answer.shape, f"{float(numbers.mean()) if numbers.numel() else 0.0:.1e}"]
    if isinstance(answer, Mapping):
        return {key: _summary(each) for key, each in answer.items()}
    if isinstance(answer, list | tuple):
        return [_summary(each) for each in answer]
    return type(answer).__qualname__


def _take(sha: Any, thing: object, seen: dict[int, object], depth: int) -> None:
    """Takes a value into the digest: what it is, what it is set to, and the source of its class if it is a user's."""
    if isinstance(thing, bytes | str | int | float | bool | complex | type(None) | torch.dtype | torch.device):
        sha.update(f"{type(thing).__name__} {thing!r};".encode())
        return
    if isinstance(thing, Tensor):
        sha.update(f"{thing.requires_grad} ".encode())
        update_digest(sha, thing)
        return
    if id(thing) in seen or not depth:
        sha.update(type(thing).__qualname__.encode())
        return
    seen[id(thing)] = thing  # held, so that no other gets its number
    if isinstance(thing, Mapping):
        for key, each in thing.items():
            sha.update(f"{key!s}=".encode() if isinstance(key, str | int | float) else b"?=")
            _take(sha, each, seen, depth - 1)
    elif isinstance(thing, list | tuple):
        sha.update(f"{type(thing).__name__} {len(thing)}".encode())
        for each in thing:
            _take(sha, each, seen, depth - 1)
    elif isinstance(thing, set | frozenset):
        for each in sorted(map(repr, thing)):
            sha.update(each.encode())
    elif isinstance(thing, functools.partial):
        for each in (thing.func, thing.args, thing.keywords):
            _take(sha, each, seen, depth - 1)
    elif isinstance(thing, types.FunctionType | types.MethodType | type | types.BuiltinFunctionType):
        _take_code(sha, thing, seen, depth)
    else:
        _take_code(sha, type(thing), seen, depth)
        if type(thing).__module__ == "numpy" and hasattr(thing, "tobytes"):
            update_digest(sha, thing)
        elif isinstance(thing, torch.Generator):
            sha.update(thing.initial_seed().to_bytes(16, "big", signed=True))
        else:
            _take(sha, dict(_set(thing)), seen, depth - 1)


def _set(thing: object) -> Iterator[tuple[str, Any]]:
    """What an object is set to, by name; of a module without its submodules, which are taken one by one."""
    for name, value in sorted(getattr(thing, "__dict__", {}).items()):
        if name in PASSING or name.endswith("_hooks") or name.endswith("_hooks_with_kwargs"):
            continue
        if name != "_modules":
            yield name, value


def _take_code(sha: Any, code: Any, seen: dict[int, object], depth: int) -> None:
    """Takes the name of a class or function, and its source where it is a user's."""
    sha.update(f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', '')};".encode())
    function = getattr(code, "__func__", code)
    for each in getattr(function, "__closure__", None) or ():
        if not _is_empty(each):
            _take(sha, each.cell_contents, seen, depth - 1)
    for each in code.__mro__ if isinstance(code, type) else (code,):
        if _is_users(each):
            sha.update(_source(each).encode())
            _take_globals(sha, each, seen, depth)


def _take_globals(sha: Any, code: Any, seen: dict[int, object], depth: int) -> None:
    """Takes the functions, classes and constants of the user's own module that a class or function names."""
    module, tree = sys.modules.get(code.__module__), _tree(code)
    if module is None or tree is None:
        return
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in sorted(names):
        value = vars(module).get(name)
        if _is_constant(value) or (
            isinstance(value, types.FunctionType | type) and _is_users(value) and id(value) not in seen
        ):
            sha.update(f"{name}=".encode())
            _take(sha, value, seen, depth - 1)


def _is_constant(value: object) -> bool:
    """Whether a value is numbers and words only; what else a module holds may be a store that fills as it runs."""
    if isinstance(value, Mapping):
        return all(_is_constant(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_constant, value))
    return isinstance(value, int | float | complex | str | bytes | Tensor | torch.dtype | types.NoneType)


def _is_users(code: Any) -> bool:
    if getattr(code, "__module__", "") == "__main__":  # typed where it runs: a script, a notebook
        return True
    try:
        file = inspect.getfile(code)
    except (TypeError, OSError):
        return False
    return not file.startswith(LIBRARIES)


def _source(code: Any) -> str:
    """The source without comments and layout, or the byte code where there is none."""
    if (tree := _tree(code)) is not None:
        return ast.dump(tree)
    functions = vars(code).values() if isinstance(code, type) else [code]
    compiled = [each.__code__ for each in functions if hasattr(each, "__code__")]
    return repr([(each.co_code, each.co_names, [c for c in each.co_consts if not hasattr(c, "co_code")])
                 for each in compiled])  # fmt: skip


def _tree(code: Any) -> ast.AST | None:
    """The source as it is understood, if there is any."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return None


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True

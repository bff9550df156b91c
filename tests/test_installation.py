"""Files by which the project is installed elsewhere: locks and the containers' build files."""

import re
import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import PROJECT

LOCKS = sorted((PROJECT / "locks").glob("*.txt"))
PYTHONS = ("3.11", "3.12", "3.13")
BUILDS = [PROJECT / "Dockerfile", PROJECT / "Dockerfile.verify"]


def pins(path):
    """(name, version, number of hashes) of every requirement in a file."""
    text = re.sub(r"\\\n", " ", re.sub("(?m)^ *#.*\n", "", path.read_text()))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("-")]
    return [
        (canonicalize_name(name), version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)))
        for line in lines
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", line)
    ]


def test_there_is_a_lock_for_each_python_that_is_named():
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    named = [each.rsplit(" ", 1)[1] for each in declared["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert tuple(named) == PYTHONS
    assert [path.stem for path in LOCKS] == [*(f"python{each}" for each in PYTHONS), "torch-cpu", "torch-cuda"]
    asked = {each.name for each in map(Requirement, declared["dependencies"])}
    for version in PYTHONS:
        names = {name for name, _, _ in pins(PROJECT / "locks" / f"python{version}.txt")}
        assert {canonicalize_name(each) for each in asked} - {"torch"} <= names


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_the_versions_of_the_constraints_each_with_its_hashes(lock):
    constrained = {name: version for name, version, _ in pins(PROJECT / "constraints.txt")}
    locked = pins(lock)
    assert locked
    assert [name for name, _, hashes in locked if not hashes] == []
    cuda = ("nvidia-", "cuda-", "triton")
    own = {name: version for name, version, _ in locked if not name.startswith(cuda)}
    assert own == {name: constrained.get(name) for name in own}


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.name)
def test_what_a_container_copies_is_in_git_and_reaches_it(build):
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False).stdout
    if not tracked:
        pytest.skip("this is no checkout")
    sent = set(re.findall("(?m)^!(.*)$", (PROJECT / ".dockerignore").read_text()))
    copied = [name for line in re.findall("(?m)^COPY (.*) ", build.read_text()) for name in line.split()]
    assert len(copied) == 6
    for name in copied:
        assert name in sent
        assert re.search(rf"(?m)^{re.escape(name)}(/|$)", tracked)
    for name in re.findall(r"/tmp/(locks/[\w.-]+\.txt)", build.read_text()):
        assert (PROJECT / name).is_file()


@pytest.mark.parametrize("build", BUILDS, ids=lambda path: path.name)
def test_debian_has_what_a_container_installs(build):
    if shutil.which("apt-cache") is None:
        pytest.skip("this is no Debian")
    (line,) = re.findall("apt-get install -y --no-install-recommends (.*?)\n", build.read_text())
    names = line.rstrip(" \\").split()
    assert len(names) >= 4
    said = subprocess.run(["apt-cache", "show", *names], capture_output=True, text=True, check=False).stdout
    found = set(re.findall("(?m)^Package: (.*)$", said))
    if not found:
        pytest.skip("apt has no lists of packages (apt-get update)")
    assert set(names) <= found

"""The picture of the house in docs/architecture.md, held against the code."""

import ast
import re

from tests.conftest import PROJECT

PACKAGE = PROJECT / "src" / "pipeline"
PAGE = (PROJECT / "docs" / "architecture.md").read_text()
DOORS = {"the door": "__main__", "`__init__.py`": "__init__"}


def imports():
    """(room, room that it imports) of every import between rooms."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
                room = node.module.split(".")[1]
                if room != parts[0]:
                    yield parts[0], room


def test_who_imports_a_room_is_what_the_table_says():
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    rooms = [room for room, _ in rows]
    assert set(rooms) == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    found = {room: {who for who, what in imports() if what == room} for room in rooms}
    told = {}
    for place, (room, words) in enumerate(rows):
        names = {DOORS.get(each.strip(), each.strip(" `")) for each in words.split(",")}
        if "all rooms below" in names:
            names = (names - {"all rooms below"}) | set(rooms[place + 1 :])
        told[room] = names
        assert names - set(DOORS.values()) <= set(rooms[place + 1 :]), "a room is imported by those below it alone"
    assert told == found


def test_every_file_stands_in_the_table_of_its_room():
    rows = dict(re.findall(r"^\| (`[a-z]+/[^|]*) \|([^|]*)\|$", PAGE, re.MULTILINE))
    told = {name for row in rows.items() for text in row for name in re.findall(r"([\w/]+\.py)", text)}
    names = {path.name for path in PACKAGE.rglob("*.py") if path.parent.parent == PACKAGE}
    families = {path.name for path in (PACKAGE / "networks").glob("*.py")} - {
        "weights.py",
        "costs.py",
        "layers.py",
        "behaviour.py",
    }
    assert names - families - {"__init__.py"} <= {name.rsplit("/", 1)[-1] for name in told}
    assert {name.rsplit("/", 1)[-1] for name in told} <= {path.name for path in PACKAGE.rglob("*.py")}

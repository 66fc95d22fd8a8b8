"""The rooms of the house: imports go downward only, and an algorithm lives in its own file."""

import ast
import re
from pathlib import Path

import pytest

import supernet

SOURCE = Path(supernet.__file__).parent
RANKS = [
    {"errors"},
    {"checks", "printable", "ranking"},
    {"nn"},
    {"space"},
    {"execution", "hub", "reports", "files"},
    {"relaxations", "cost"},
    {"processes"},
    {"data"},
    {"training"},
    {"search"},
    {"trainers"},
    {"compare", "deploy", "rerun", "runs", "testing"},
    {"demo"},
    {"cli", "retiarii"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def room(path):
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "supernet":
                yield parts[1] if len(parts) > 1 else "supernet"


def test_every_file_stands_in_a_room():
    rooms = {room(path) for path in SOURCE.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms == set(RANK)


def test_the_guide_for_contributors_shows_the_rooms_as_they_are():
    guide = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    table = guide[guide.index("| room |") : guide.index("`benchmarks/` stands")]
    first_column = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    shown = [name.removesuffix(".py").rstrip("/") for cell in first_column for name in re.findall(r"`(.*?)`", cell)]
    assert sorted(shown) == sorted(RANK)
    (order,) = re.findall(r"`(errors < .*)`", guide)
    assert [set(re.findall(r"\w+", rank)) for rank in order.split(" < ")] == RANKS


def test_imports_go_downward_only():
    upward = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path in SOURCE.rglob("*.py")
        if room(path) != "__init__"
        for other in imported_rooms(path)
        if other != room(path) and not (other in RANK and RANK[other] < RANK[room(path)])
    ]
    assert upward == []


@pytest.mark.parametrize(
    ("algorithm", "file"),
    [
        ("DartsTrainer", "darts.py"),
        ("EnasTrainer", "enas.py"),
        ("ProxylessTrainer", "proxyless.py"),
        ("RandomTrainer", "random_search.py"),
        ("SinglePathTrainer", "single_path.py"),
    ],
)
def test_an_algorithm_is_named_in_its_own_file_only(algorithm, file):
    """Besides `__init__`, the demo, which shows it, and the old names that are translated onto it."""
    allowed = {"__init__.py", "demo.py"}
    sources = [path for path in SOURCE.rglob("*.py") if room(path) != "retiarii"]
    assert {path.name for path in sources if algorithm in path.read_text()} - allowed == {file}


def test_public_names_stand_in_the_package_itself():
    missing = [name for name in supernet.__all__ if not hasattr(supernet, name)]
    assert missing == []
    errors = {name for name in dir(supernet.errors) if name.endswith("Error")}
    assert errors == set(supernet.errors.__all__)
    assert all(issubclass(getattr(supernet.errors, name), supernet.errors.SupernetError) for name in errors)


def imported_modules(path):
    """Return the modules that a file imports when it is imported itself: neither for types only, nor in functions."""
    found, stack = set(), list(ast.parse(path.read_text()).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not isinstance(node, ast.FunctionDef) and not (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            stack.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
    return found


def test_no_module_imports_itself_by_way_of_others():
    """A package counts as its own `__init__` alone, which a module inside does not import by being there."""
    modules = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = path
    graph = {name: (imported_modules(path) & modules.keys()) - {name} for name, path in modules.items()}
    graph = {name: {m for m in others if not name.startswith(f"{m}.")} for name, others in graph.items()}
    while leaves := {name for name, others in graph.items() if not others}:
        graph = {name: others - leaves for name, others in graph.items() if name not in leaves}
    assert graph == {}


def test_no_room_is_larger_than_a_quarter_of_the_house():
    lines = {}
    for path in SOURCE.rglob("*.py"):
        lines[room(path)] = lines.get(room(path), 0) + len(path.read_text().splitlines())
    largest = max(lines, key=lines.get)
    assert lines[largest] / sum(lines.values()) < 0.25, largest

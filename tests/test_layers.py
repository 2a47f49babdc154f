"""Imports point one way: graphs -> steps -> pixels, catalogs, io -> model; and files stay short."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMON = {"errors"}
#: What each layer may import of apflow, besides itself; layers not named here may import all.
ALLOWED = {
    "errors": set(),
    "model": COMMON,
    "config": {"config_tables", *COMMON},
    "config_tables": COMMON,
    "log": COMMON,
    "cameras": set(),
    "pixels": {"model", *COMMON},
    "catalogs": {"model", *COMMON},
    "io": {"model", "cameras", "config", "config_tables", *COMMON},
    "graph": {"model", *COMMON},
    "graph_draw": {"graph", *COMMON},
    "steps": {"pixels", "catalogs", "io", "model", "config", "config_tables", "graph", "log", *COMMON},
    "graphs": {"steps", "model", "config", "config_tables", "graph", *COMMON},
    "simulate": {"model", "io", "pixels", "config", "config_tables", "cameras", *COMMON},
}
DASK = {"dask", "distributed"}
LONGEST = 350


def layer(path: Path) -> str:
    part = path.relative_to(ROOT).with_suffix("").parts
    return part[1] if part[0] == "apflow" and len(part) > 1 else part[0]


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in the file."""
    for found in ast.walk(ast.parse(path.read_text())):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom) and found.module and found.level == 0:
            yield found.module
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


def test_imports_point_one_way() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("apflow", "graphs")
        if (allowed := ALLOWED.get(layer(path))) is not None
        for module in imported(path)
        if module.startswith("apflow.") and module.split(".")[1] not in allowed | {layer(path), "__version__"}
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_only_the_runner_and_the_operators_know_dask() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("apflow", "graphs")
        if layer(path) not in ("run", "operate", "commands", "cli")
        for module in imported(path)
        if module.split(".")[0] in DASK
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_only_the_simulator_and_its_operators_know_the_truth() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("apflow", "graphs", "cluster")
        if layer(path) not in ("simulate", "operate", "commands", "cli")
        for module in imported(path)
        if module.startswith("apflow.simulate")
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_files_are_short() -> None:
    lengths = {
        path: len(path.read_text().splitlines()) for path in sources("apflow", "graphs", "cluster", "benchmarks")
    }
    long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > LONGEST]
    assert not long, "\n".join(long)

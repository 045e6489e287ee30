"""The house rules that a reader cannot check by eye: which way imports run, and what a layer may
never say. cli → app → core; everything is read with ``ast``, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent / "specx"
_FILES = sorted(path for path in _ROOT.rglob("*.py"))
_CLI_MAY_KNOW = {"specx.core", "specx.core.stats", "specx.core.config"}


def _layer(path: Path) -> str:
    """``core``, ``cli`` or ``app``: all the rest."""
    first = path.relative_to(_ROOT).parts[0]
    if first == "__main__.py":
        return "cli"
    return first if first in ("core", "cli") else "app"


def _of(*layers: str) -> list[Path]:
    return [path for path in _FILES if _layer(path) in layers]


def _name(path: Path) -> str:
    return str(path.relative_to(_ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in the file, also inside functions and for types
    only; ``from a import b`` names both ``a`` and, where it is a module of ours, ``a.b``."""
    package = ["specx", *path.relative_to(_ROOT).parts[:-1]]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            for alias in node.names:
                inner = _ROOT.parent.joinpath(*module.split("."), alias.name)
                if inner.with_suffix(".py").is_file() or inner.is_dir():
                    yield f"{module}.{alias.name}"


def _outside(path: Path) -> set[str]:
    """Top-level packages that are neither ours nor Python's."""
    roots = {module.split(".")[0] for module in _imports(path)}
    return roots - sys.stdlib_module_names - {"specx"}


def _calls(path: Path) -> set[str]:
    """Names that are called plainly, as in ``print(…)``."""
    return {
        node.func.id
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_layers_are_all_there() -> None:
    assert {_layer(path) for path in _FILES} == {"core", "app", "cli"}


@pytest.mark.parametrize("path", _of("core"), ids=_name)
def test_the_core_imports_torch_and_itself(path: Path) -> None:
    kernels = {"triton", "flash_attn"} if "kernels" in path.parts else set()
    assert _outside(path) <= {"torch"} | kernels
    ours = {module for module in _imports(path) if _within(module, "specx")}
    assert {module for module in ours if not _within(module, "specx.core")} <= {"specx"}


@pytest.mark.parametrize("name", ["core/config.py", "core/architecture.py"])
def test_settings_and_facts_are_read_without_torch(name: str) -> None:
    assert _outside(_ROOT / name) == set()


@pytest.mark.parametrize("path", _of("core"), ids=_name)
def test_the_core_knows_no_screen_and_no_file(path: Path) -> None:
    assert not _calls(path) & {"print", "open", "input"}
    forbidden = {"pathlib", "os", "io", "socket", "urllib", "logging", "subprocess", "sys"}
    assert not {module.split(".")[0] for module in _imports(path)} & forbidden


@pytest.mark.parametrize("path", _of("app"), ids=_name)
def test_the_app_knows_no_screen(path: Path) -> None:
    assert not _outside(path) & {"rich", "typer", "click"}
    assert not [module for module in _imports(path) if _within(module, "specx.cli")]
    assert not _calls(path) & {"print", "input"}


@pytest.mark.parametrize("path", _of("cli"), ids=_name)
def test_the_command_line_uses_the_app_and_never_the_models(path: Path) -> None:
    core = {module for module in _imports(path) if _within(module, "specx.core")}
    assert core <= _CLI_MAY_KNOW
    assert not _outside(path) & {"transformers", "click", "yaml", "pydantic"}


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_nobody_imports_the_programs_beside_the_package(path: Path) -> None:
    assert not {module.split(".")[0] for module in _imports(path)} & {"training", "tools", "tests"}


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_nobody_asks_whether_an_attribute_exists(path: Path) -> None:
    """State that is there or not by chance is what made the method's reference code fail."""
    assert "hasattr" not in _calls(path)


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_no_error_is_swallowed_blindly(path: Path) -> None:
    """A handler names what it expects. The one exception: a handler that ends in ``raise``."""
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {kind.id if isinstance(kind, ast.Name) else None for kind in caught if kind}
        blanket = node.type is None or names & {"Exception", "BaseException"}
        assert not blanket or isinstance(node.body[-1], ast.Raise), f"line {node.lineno}"


@pytest.mark.parametrize("path", [path for path in _FILES if path.stat().st_size], ids=_name)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(_tree(path))

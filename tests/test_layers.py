"""The house rules that a reader cannot check by eye: which way imports run, what a layer may never
say, how large a file's functions may grow. Everything is read with ``ast``, nothing is imported.

``EXCEPTIONS`` lists what breaks a rule today. It may only shrink: an entry that is no longer needed
fails its test until it is deleted.
"""

import ast
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path(__file__).parent.parent
_PACKAGE = _ROOT / "specx"
_FILES = sorted(_PACKAGE.rglob("*.py"))
_BESIDE = sorted(path for folder in ("training", "tools") for path in (_ROOT / folder).glob("*.py"))
_CLI_MAY_KNOW = {"specx.core", "specx.core.stats", "specx.core.config"}
_FUNCTION_LINES = 60
_FILES_IN_SPECX = 10

#: Rule → what breaks it: files below ``specx/``, with ``:name`` for one function of a file.
EXCEPTIONS: dict[str, set[str]] = {
    "files in specx": set(),
    "long functions": {
        "core/kernels/hopper.py:attend",
        "core/kernels/tree_attention.py:_attend",
    },
    "transformers": set(),
    "file names": {
        "checkpoints/config.py",  # eagle/config.py is the same thing of a head
    },
    "class names": set(),
    "import circles": set(),
}
#: Where transformers is the witness, or converts what only it can read.
_TRANSFORMERS_BELONGS = {"bench/transformers_baseline.py", "checkpoints/tokenizer.py"}


def _layer(path: Path) -> str:
    """``core``, ``cli`` or ``app``: all the rest."""
    first = path.relative_to(_PACKAGE).parts[0]
    if first == "__main__.py":
        return "cli"
    return first if first in ("core", "cli") else "app"


def _of(*layers: str) -> list[Path]:
    return [path for path in _FILES if _layer(path) in layers]


def _name(path: Path) -> str:
    folder = _PACKAGE if path.is_relative_to(_PACKAGE) else _ROOT
    return path.relative_to(folder).as_posix()


def _module(path: Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _nodes(tree: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    """Every node; without ``types`` nothing that only a type checker runs."""
    for child in ast.iter_child_nodes(tree):
        if not types and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for alternative in child.orelse:
                yield from (alternative, *_nodes(alternative, types=types))
            continue
        yield child
        yield from _nodes(child, types=types)


def _imports(path: Path, *, types: bool = True) -> Iterator[str]:
    """Every module that is imported anywhere in the file, also inside functions; ``from a import
    b`` names both ``a`` and, where it is a module of ours, ``a.b``."""
    package = path.relative_to(_ROOT).parts[:-1]
    for node in _nodes(_tree(path), types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            for alias in node.names:
                inner = _ROOT.joinpath(*module.split("."), alias.name)
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


def _but_for_exceptions(rule: str, found: set[str]) -> set[str]:
    """What breaks ``rule`` without being listed. A listed thing that is in order again fails."""
    done = EXCEPTIONS[rule] - found
    assert not done, f"delete from EXCEPTIONS[{rule!r}]: {sorted(done)}"
    return found - EXCEPTIONS[rule]


def test_the_layers_are_all_there() -> None:
    assert {_layer(path) for path in _FILES} == {"core", "app", "cli"}


def _breaches(files: Iterable[Path], check: Callable[[Path], Iterable[str]]) -> dict[str, set[str]]:
    """File → what ``check`` has against it."""
    found = {_name(path): set(check(path)) for path in files}
    return {name: reasons for name, reasons in found.items() if reasons}


def _imported(path: Path, *packages: str) -> set[str]:
    """What of ``packages`` and below them the file imports."""
    return {name for name in _imports(path) if any(_within(name, each) for each in packages)}


def test_the_core_imports_torch_and_itself() -> None:
    def against(path: Path) -> set[str]:
        allowed = {"torch", "triton", "flash_attn"} if "kernels" in path.parts else {"torch"}
        if _name(path) in EXCEPTIONS["transformers"]:
            allowed.add("transformers")
        ours = _imported(path, "specx") - _imported(path, "specx.core") - {"specx"}
        return (_outside(path) - allowed) | ours

    assert not _breaches(_of("core"), against)


def test_the_core_knows_no_screen_and_no_file() -> None:
    forbidden = ("pathlib", "os", "io", "socket", "urllib", "logging", "subprocess", "sys")
    calls = {"print", "open", "input"}
    assert not _breaches(
        _of("core"), lambda path: _calls(path) & calls | _imported(path, *forbidden)
    )


def test_the_app_knows_no_screen() -> None:
    forbidden = ("rich", "typer", "click", "specx.cli")
    calls = {"print", "input"}
    assert not _breaches(
        _of("app"), lambda path: _calls(path) & calls | _imported(path, *forbidden)
    )


def test_the_command_line_uses_the_app_and_never_the_models() -> None:
    forbidden = ("transformers", "click", "yaml")
    assert not _breaches(
        _of("cli"),
        lambda path: _imported(path, *forbidden) | _imported(path, "specx.core") - _CLI_MAY_KNOW,
    )


def test_nobody_imports_the_programs_beside_the_package() -> None:
    assert not _breaches(_FILES, lambda path: _imported(path, "training", "tools", "tests"))


def test_transformers_is_only_the_witness() -> None:
    """No command needs it on the way to a first token; for types it would be imported as well."""
    found = {_name(path) for path in _FILES if "transformers" in _outside(path)}
    assert not _but_for_exceptions("transformers", found - _TRANSFORMERS_BELONGS)


def test_no_module_imports_itself_on_a_detour() -> None:
    """Imports inside functions count: they only hide a circle. What is imported for types alone
    does not."""
    names = {_module(path) for path in _FILES}
    graph = {
        _module(path): {name for name in _imports(path, types=False) if name in names}
        for path in _FILES
    }
    circular = {name for name in graph if name in _reached(graph, name)}
    assert not _but_for_exceptions("import circles", circular)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """What can be reached from ``start`` in one step or more."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph[waiting.pop()] - seen
        seen |= fresh
        waiting += fresh
    return seen


def test_few_files_lie_at_the_top() -> None:
    found = {path.name for path in _PACKAGE.glob("*.py")}
    assert len(_but_for_exceptions("files in specx", found)) <= _FILES_IN_SPECX


def test_no_file_name_occurs_twice_in_a_room() -> None:
    """A room is a folder of ``specx/`` with everything below it."""
    names = [PurePosixPath(_name(path)) for path in _FILES if path.name != "__init__.py"]
    rooms = Counter((name.parts[0], name.name) for name in names if len(name.parts) > 1)
    twice = {f"{room}/{name}" for (room, name), count in rooms.items() if count > 1}
    assert not _but_for_exceptions("file names", twice)


def test_no_class_name_occurs_twice() -> None:
    names = Counter(
        node.name
        for path in _FILES
        for node in _tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not _but_for_exceptions("class names", {name for name in names if names[name] > 1})


def test_a_function_fits_a_screen() -> None:
    long = {
        f"{_name(path)}:{node.name}"
        for path in [*_FILES, *_BESIDE]
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= _FUNCTION_LINES
    }
    assert not _but_for_exceptions("long functions", long)


def test_nobody_asks_whether_an_attribute_exists() -> None:
    """State that is there or not by chance is what made the method's reference code fail."""
    assert not _breaches(_FILES, lambda path: _calls(path) & {"hasattr"})


def test_no_error_is_swallowed_blindly() -> None:
    """A handler names what it expects. The one exception: a handler that ends in ``raise``."""

    def against(path: Path) -> Iterator[str]:
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {kind.id if isinstance(kind, ast.Name) else None for kind in caught if kind}
            blanket = node.type is None or names & {"Exception", "BaseException"}
            if blanket and not isinstance(node.body[-1], ast.Raise):
                yield f"line {node.lineno}"

    assert not _breaches(_FILES, against)


def test_every_file_says_what_it_is() -> None:
    assert not [
        _name(path) for path in _FILES if path.stat().st_size and not ast.get_docstring(_tree(path))
    ]

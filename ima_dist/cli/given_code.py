"""A function that was given in Python, as the ``pkg.module:function`` that a configuration names.

One of a module is named by it. One of a notebook or a script exists in this process only: its source, with that of
what it uses from there, becomes a module of its own, which the run keeps.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
import symtable
import sys
import textwrap
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ima_dist.config.errors import ConfigError
from ima_dist.rundir.directory import RunDir

_FIRST = "# Kept by ima_dist.fit: a function of a notebook or script, and what it uses from there."
_NAME = "kept_"


def is_kept(module: str) -> bool:
    """Whether this is the name of a module that was made here."""
    return module.startswith(_NAME)


class Given(NamedTuple):
    """A function. reference: for the configuration. source: of its module, if that is to be kept with the run."""

    reference: str
    source: str | None = None

    def keep(self, run: RunDir) -> None:
        """Write the module into ``code/``, where this process and its workers find it. Raises OSError, LeaseLost."""
        if self.source is not None:
            with run.replacing(self._file(run)) as opened:
                opened.write(self.source.encode())
            self.use(run)

    def use(self, run: RunDir) -> None:
        """Let the module be the one that ``run`` keeps, if it does."""
        if self.source is not None and self._file(run).is_file():
            sys.modules[self._module].__file__ = str(self._file(run))
            sys.path.append(str(run.code_dir))

    @property
    def _module(self) -> str:
        return self.reference.partition(":")[0]

    def _file(self, run: RunDir) -> Path:
        return run.code_dir / f"{self._module}.py"


def given(function: Any, what: str) -> Given:
    """``function``, a callable or already a reference, as the configuration names it; ``what``: its argument's name.

    A module that has to be kept can be imported in this process from now on. Raises ConfigError if neither other
    processes nor a file could have the function.
    """
    if isinstance(function, str):
        return Given(function)
    name = getattr(function, "__name__", "")
    if not isinstance(function, types.FunctionType | type):
        raise ConfigError(
            f"{what} must be a function that builds the network, as build(num_classes, input_shape), not a "
            f"{type(function).__name__}: give the function or class, and its arguments as model.args.KEY."
        )
    if _importable(function):
        return Given(f"{function.__module__}:{name}")
    kept = _Kept(what)
    called = "build" if name == "<lambda>" else name
    kept.add(called, function)
    source = "\n\n\n".join([_FIRST, *kept.parts]) + "\n"
    module = f"{_NAME}{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    if module not in sys.modules:
        made = types.ModuleType(module)
        file = f"<{module}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        exec(compile(source, file, "exec"), vars(made))
        sys.modules[module] = made
    return Given(f"{module}:{called}", source)


def _importable(value: Any) -> bool:
    """Whether another process finds a function or class in the module that it says it is from."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    return module not in (None, "__main__") and getattr(sys.modules.get(module), name, None) is value


class _Kept:
    """The parts of a module: definitions, each after those that it needs."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.parts: list[str] = []
        self._done: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Add what defines ``name`` as ``value``. Raises ConfigError if that has no source."""
        if name in self._done:
            if self._done[name] is not value:
                raise self._refused(f"{name} stands for two different things")
            return
        self._done[name] = value
        if isinstance(value, types.ModuleType) and value.__name__ != "__main__":
            self.parts.append(f"import {value.__name__} as {name}")
        elif _importable(value):
            self.parts.append(f"from {value.__module__} import {value.__name__} as {name}")
        elif isinstance(value, types.FunctionType | type):
            self._define(name, value)
        elif _is_plain(value):
            self.parts.append(f"{name} = {value!r}")
        else:
            raise self._refused(f"it uses {name}, a {type(value).__name__} of this session")

    def _define(self, name: str, value: Any) -> None:
        found = _source(value)
        if found is None:
            raise self._refused(f"the source of {getattr(value, '__qualname__', name)} cannot be found")
        known = _names_known_to(value)
        for needed in _globals_of(found):
            if needed in known:
                self.add(needed, known[needed])
            elif not hasattr(builtins, needed):
                raise self._refused(f"it uses {needed}, which does not exist")
        own = getattr(value, "__name__", name)
        self.parts.append(f"{name} = {found}" if own == "<lambda>" else found)
        if own not in ("<lambda>", name):
            self.parts.append(f"{name} = {own}")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.what} cannot be kept with the run, as {why}: put it into a module, such as mynet.py, and import it "
            "from there."
        )


def _is_plain(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _names_known_to(value: Any) -> Mapping[str, Any]:
    """The global names of a function, or of a class's methods, and what it closes over."""
    known: dict[str, Any] = {}
    for function in _functions_of(value):
        known |= function.__globals__
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                known[name] = cell.cell_contents
    return known


def _functions_of(value: Any) -> list[types.FunctionType]:
    value = inspect.unwrap(value) if isinstance(value, types.FunctionType) else value
    members = [value] if isinstance(value, types.FunctionType) else vars(value).values()
    plain = (getattr(member, "__func__", getattr(member, "fget", member)) for member in members)
    return [member for member in plain if isinstance(member, types.FunctionType)]


def _source(value: Any) -> str | None:
    """The text that defines a function or class, as Python has read it; None if that is not known."""
    for function in _functions_of(value):
        code = function.__code__
        lines = linecache.getlines(code.co_filename, function.__globals__)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:  # the file has changed
            continue
        for node in ast.walk(tree):
            if _defines(node, value, code):
                return textwrap.dedent(_segment(lines, node))
    return None


def _defines(node: ast.AST, value: Any, code: types.CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        # Where its body begins: several may stand in one line.
        places = {(line, column) for line, _, column, _ in code.co_positions() if line and column is not None}
        return code.co_name == "<lambda>" and (node.body.lineno, node.body.col_offset) in places
    if isinstance(node, ast.ClassDef):
        inside = node.lineno <= code.co_firstlineno <= (node.end_lineno or 0)
        return isinstance(value, type) and node.name == value.__name__ and inside
    if isinstance(node, ast.FunctionDef):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return node.name == code.co_name and first == code.co_firstlineno and not isinstance(value, type)
    return False


def _segment(lines: list[str], node: Any) -> str:
    if isinstance(node, ast.Lambda):
        return f"({ast.get_source_segment(''.join(lines), node)})"
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "".join(lines[first - 1 : node.end_lineno]).rstrip()


def _globals_of(source: str) -> list[str]:
    """The names that a definition takes from around it, in alphabetical order."""
    found: set[str] = set()
    tables = [symtable.symtable(source, "<kept>", "exec")]
    own = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned()}
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
        tables += table.get_children()
    return sorted(found - own)

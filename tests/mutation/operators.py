"""Mutation operators: every small change of a module that its tests should notice.

A mutant is one replacement of one node's text; all other lines keep their numbers. Operators are
chosen for code that checks and that encodes: a check left out, one clause of a condition dropped, a
boundary moved by one, an element left out of what is hashed. Changes that any run would notice
(another name, an argument of another type) are not made.

Not mutated: annotations, docstrings, decorators, messages of errors, `__repr__`, bodies of
Protocol classes, and anything inside an f-string.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SWAPPED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
ARITHMETIC = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "//",
    ast.LShift: ">>", ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|",
    ast.Pow: "*",
}  # fmt: skip
TWINS = {"min": "max", "max": "min", "all": "any", "any": "all"}
UNWRAPPED = {"sorted", "reversed"}
HASHES = {"labelled_hash", "sha256"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one place; `key` stays the same while the function around it does."""

    module: str
    function: str
    line: int
    last_line: int
    operator: str
    before: str
    after: str
    start: int
    stop: int
    key: str
    at_import: bool
    """Whether the place runs when the module is imported."""

    def apply(self, source: bytes) -> bytes:
        """The mutated module, with every other line where it was."""
        gone = source[self.start : self.stop].count(b"\n") - self.after.count("\n")
        return source[: self.start] + self.after.encode() + b"\n" * gone + source[self.stop :]


@dataclass(frozen=True, slots=True)
class _Change:
    node: ast.AST
    operator: str
    after: str


def mutants(module: str, source: bytes) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    seen: Counter[str] = Counter()
    made: list[Mutant] = []
    for function, body, at_import, change in _changes(tree):
        node = change.node
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        stop = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        before = source[start:stop].decode()
        lines = before.count("\n")
        after = change.after
        if lines and not isinstance(node, ast.stmt):
            after = f"({after}" + "\n" * lines + ")"
        where = f"{module}|{function}|{body}|{change.operator}|{before}|{change.after}"
        seen[where] += 1
        key = hashlib.sha256(f"{where}|{seen[where]}".encode()).hexdigest()[:16]
        mutant = Mutant(
            module, function, node.lineno, node.end_lineno, change.operator,  # type: ignore[attr-defined]
            before, after, start, stop, key, at_import,
        )  # fmt: skip
        made.append(mutant)
    unique = {(one.start, one.stop, one.after.strip("()\n")): one for one in reversed(made)}
    return sorted(unique.values(), key=lambda one: (one.line, one.start, one.stop, one.after))


def _changes(tree: ast.Module) -> Iterator[tuple[str, str, bool, _Change]]:
    """(qualified name, text of the function or class line, runs at import, change)."""
    yield from _within(tree, "", "", True)


def _within(
    node: ast.AST, function: str, body: str, at_import: bool
) -> Iterator[tuple[str, str, bool, _Change]]:
    for change in _of_node(node):
        if isinstance(node, ast.Assign) and function.endswith("__init__"):
            continue  # an object without its field fails wherever it is used
        yield function, body, at_import, change
    for child in _children(node):
        name, text, imported = function, body, at_import
        if isinstance(child, ast.ClassDef):
            if _is_protocol(child):
                continue
            name = f"{function}.{child.name}".lstrip(".")
        elif isinstance(child, ast.FunctionDef):
            if child.name == "__repr__":
                continue
            name = f"{function}.{child.name}".lstrip(".")
            text, imported = (body if not at_import else ast.unparse(child)), False
            for change in _of_defaults(child):
                yield name, text, True, change
        elif at_import and isinstance(node, ast.Module | ast.ClassDef):
            text = ast.unparse(child)
        yield from _within(child, name, text, imported)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What may be mutated below a node."""
    match node:
        case ast.FunctionDef(body=body) | ast.ClassDef(body=body) | ast.Module(body=body):
            yield from (child for child in body if not _is_docstring(child))
        case ast.AnnAssign(target=target, value=value):
            yield from [target] if value is None else [target, value]
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return
        case ast.Assert(test=test):
            yield test
        case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return
        case ast.Call(func=func, args=args) if ast.unparse(func) in ("cast", "typing.cast"):
            yield from args[1:]
        case ast.Call(func=func) if ast.unparse(func).endswith("Error"):
            return
        case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]):
            return
        case ast.BinOp(op=ast.BitOr()) if _is_type_union(node):
            return
        case _:
            yield from ast.iter_child_nodes(node)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases)


def _is_type_union(node: ast.BinOp) -> bool:
    names = re.findall(r"[\w.]+", ast.unparse(node))
    return all(name.split(".")[-1][:1].isupper() or name in _BUILTIN_TYPES for name in names)


_BUILTIN_TYPES = {"None", "bytes", "str", "int", "float", "bool", "memoryview"}


def _of_defaults(function: ast.FunctionDef) -> Iterator[_Change]:
    for default in [*function.args.defaults, *function.args.kw_defaults]:
        if isinstance(default, ast.Constant):
            yield from _constant(default)


def _of_node(node: ast.AST) -> Iterator[_Change]:
    match node:
        case ast.If():
            yield from _if(node)
        case ast.While(test=test) if not isinstance(test, ast.Constant):
            yield _Change(test, "condition", "False")
        case ast.IfExp(body=body, orelse=orelse):
            yield _Change(node, "branch", f"({ast.unparse(body)})")
            yield _Change(node, "branch", f"({ast.unparse(orelse)})")
        case ast.comprehension(ifs=ifs):
            for test in ifs:
                yield _Change(test, "filter", "True")
                if not isinstance(test, ast.Compare):
                    yield _Change(test, "filter", f"(not ({ast.unparse(test)}))")
        case ast.BoolOp():
            yield from _bool_op(node)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _Change(node, "not", f"({ast.unparse(operand)})")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield _Change(node, "sign", f"({ast.unparse(operand)})")
        case ast.Compare():
            yield from _compare(node)
        case ast.BinOp():
            yield from _bin_op(node)
        case ast.AugAssign(op=op, target=target, value=value) if type(op) in ARITHMETIC:
            sign = ARITHMETIC[type(op)]
            text = f"{ast.unparse(target)} {sign}= {ast.unparse(value)}"
            yield _Change(node, "arithmetic", text)
            yield _Change(node, "statement", "pass")
        case ast.Constant():
            yield from _constant(node)
        case ast.Raise():
            yield _Change(node, "raise", "pass")
        case ast.Expr(value=ast.Call()) | ast.Delete():
            yield _Change(node, "statement", "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield _Change(node, "statement", "pass")
        case ast.Continue() | ast.Break():
            yield _Change(node, "statement", "pass")
        case ast.FunctionDef():
            yield from _returns(node)
        case ast.Call():
            yield from _call(node)
        case ast.Slice():
            yield from _slice(node)
        case ast.ExceptHandler(body=[first, *_]) if not isinstance(node.body[-1], ast.Raise):
            yield _Change(first, "handler", "raise")
        case _:
            pass


def _if(node: ast.If) -> Iterator[_Change]:
    if isinstance(node.test, ast.Constant) or isinstance(node.body[0], ast.Raise):
        return  # a check: to leave it out is to leave out its `raise`
    yield _Change(node.test, "condition", "False")
    yield _Change(node.test, "condition", "True")


def _bool_op(node: ast.BoolOp) -> Iterator[_Change]:
    word = " and " if isinstance(node.op, ast.And) else " or "
    other = " or " if isinstance(node.op, ast.And) else " and "
    texts = [f"({ast.unparse(value)})" for value in node.values]
    yield _Change(node, "and/or", f"({other.join(texts)})")
    for index in range(len(texts)):
        yield _Change(node, "clause", f"({word.join(texts[:index] + texts[index + 1 :])})")


def _compare(node: ast.Compare) -> Iterator[_Change]:
    sides = [_operand(one) for one in (node.left, *node.comparators)]
    signs = [_SIGNS[type(op)] for op in node.ops]
    for place, op in enumerate(node.ops):
        changed = [*signs[:place], SWAPPED[type(op)], *signs[place + 1 :]]
        pairs = zip(changed, sides[1:], strict=True)
        yield _Change(node, "comparison", f"({sides[0]} {' '.join(f'{s} {t}' for s, t in pairs)})")
    if len(node.ops) > 1:
        for place in range(len(node.ops)):
            left, right = sides[place], sides[place + 1]
            yield _Change(node, "clause", f"({left} {signs[place]} {right})")
    match node:
        case ast.Compare(left=ast.Tuple(elts=ours), comparators=[ast.Tuple(elts=theirs)]) if len(
            ours
        ) == len(theirs):
            for place in range(len(ours)):
                one = ", ".join(ast.unparse(e) for i, e in enumerate(ours) if i != place)
                two = ", ".join(ast.unparse(e) for i, e in enumerate(theirs) if i != place)
                yield _Change(node, "element", f"(({one},) {signs[0]} ({two},))")
        case _:
            pass


def _operand(node: ast.expr) -> str:
    """As it has to be written beside a comparison."""
    text = ast.unparse(node)
    loose = ast.BoolOp | ast.IfExp | ast.Lambda | ast.Compare | ast.NamedExpr
    return f"({text})" if isinstance(node, loose) or text.startswith("not ") else text


_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
}  # fmt: skip


def _bin_op(node: ast.BinOp) -> Iterator[_Change]:
    if type(node.op) not in ARITHMETIC or _is_type_union(node):
        return
    left, right = ast.unparse(node.left), ast.unparse(node.right)
    if isinstance(node.op, ast.Add) and _is_concatenation(node):
        yield _Change(node, "element", f"({left})")
        yield _Change(node, "element", f"({right})")
        return
    if isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
        return
    yield _Change(node, "arithmetic", f"(({left}) {ARITHMETIC[type(node.op)]} ({right}))")
    if isinstance(node.op, ast.Sub | ast.BitAnd | ast.BitOr):
        yield _Change(node, "operand", f"({left})")


_BYTES_LIKE = re.compile(
    r"['\"]|encode\(|expose\(|\.join\(|to_bytes|digest|tuple\(|list\("
    r"|\[\*|blob\(|write\(|canonical|VERSION_BYTE|\.finish\("
)


def _is_concatenation(node: ast.BinOp) -> bool:
    return bool(_BYTES_LIKE.search(ast.unparse(node)))


def _constant(node: ast.Constant) -> Iterator[_Change]:
    value = node.value
    if isinstance(value, bool):
        yield _Change(node, "constant", str(not value))
    elif isinstance(value, int):
        yield _Change(node, "constant", str(value + 1))
        if value == 1:
            yield _Change(node, "constant", "0")
    elif isinstance(value, float):
        yield _Change(node, "constant", repr(value * 2 or 1.0))
    elif isinstance(value, bytes) and value:
        yield _Change(node, "constant", repr(value[:-1] + bytes([value[-1] ^ 1])))


def _returns(node: ast.FunctionDef) -> Iterator[_Change]:
    kind = "" if node.returns is None else ast.unparse(node.returns)
    empty = "[]" if kind.startswith("list[") else ""
    empty = "()" if re.fullmatch(r"tuple\[.*, \.\.\.\]", kind) else empty
    empty = "None" if kind.endswith("| None") else empty
    for one in _returns_in(node):
        if one.value is None:
            continue
        text = ast.unparse(one.value)
        if kind == "bool" and not isinstance(one.value, ast.Constant | ast.Compare):
            yield _Change(one.value, "return", f"(not ({text}))")
        elif empty and text != empty:
            yield _Change(one.value, "return", empty)


def _returns_in(node: ast.AST) -> Iterator[ast.Return]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(child, ast.Return):
            yield child
        yield from _returns_in(child)


def _call(node: ast.Call) -> Iterator[_Change]:
    match node.func:
        case ast.Name(id=name) if name in TWINS:
            yield _Change(node.func, "twin", TWINS[name])
        case ast.Name(id=name) if name in UNWRAPPED:
            yield _Change(node, "order", f"list({ast.unparse(node.args[0])})")
        case ast.Name(id=name) if name in HASHES and len(node.args) > 1:
            yield from _arguments_dropped(node)
        case ast.Attribute(value=ast.Call() as chained) if _is_chain(node):
            yield _Change(node, "element", ast.unparse(chained))
        case ast.Attribute(attr="join") if node.args and isinstance(node.args[0], ast.Tuple):
            elements = node.args[0].elts
            for place in range(len(elements)):
                rest = ", ".join(ast.unparse(e) for i, e in enumerate(elements) if i != place)
                yield _Change(node.args[0], "element", f"({rest},)")
        case _:
            pass


def _is_chain(node: ast.Call) -> bool:
    """A link of a `Writer` chain, other than its end."""
    text = ast.unparse(node)
    return text.startswith("Writer()") and not text.endswith(".finish()")


def _arguments_dropped(node: ast.Call) -> Iterator[_Change]:
    for place in range(len(node.args)):
        rest = [ast.unparse(arg) for i, arg in enumerate(node.args) if i != place]
        yield _Change(node, "element", f"{ast.unparse(node.func)}({', '.join(rest)})")


def _slice(node: ast.Slice) -> Iterator[_Change]:
    for bound in (node.lower, node.upper):
        if bound is not None and not isinstance(bound, ast.Constant):
            yield _Change(bound, "slice", f"({ast.unparse(bound)}) + 1")
            yield _Change(bound, "slice", f"({ast.unparse(bound)}) - 1")

"""pickle opcodes -> plain values. Executes nothing and imports nothing.

A pickle is a program for a small stack machine. This machine knows only the instructions that build plain
values. Where a program names something to import, the caller's `resolve` decides what stands for it; where it
calls something, only the `build` function that the caller gave is run. No object of the file's choice is ever
made.

The instructions are described in the standard library's `pickletools`.
"""

import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import BinaryIO

Build = Callable[[tuple[object, ...]], object]

MAX_INSTRUCTIONS = 1_000_000
_MAX_HANDLED = 1_500_000
_MAX_REASON = 200
# Integers this large can be chosen so that all of them fall into one place of a dictionary.
_MAX_KEY = 2**60


class PickleRefusedError(Exception):
    """The program asks for something that this machine does not do; the text says what."""


@dataclass(frozen=True, eq=False)
class Global:
    """What stands for an imported name: the name, and what calling it gives, where it may be called."""

    name: str
    build: Build | None = None


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object of a known, harmless kind whose content nobody needs."""

    name: str


_LITERALS = frozenset(
    (
        *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_IGNORED = frozenset(("PROTO", "FRAME"))


def read_pickle(
    program: BinaryIO, resolve: Callable[[str, str], Global], persistent: Callable[[object], object]
) -> object:
    """The value that the pickle at the place of `program` describes; the place is then behind it.

    Args:
        program: The program, in a file that is open for reading.
        resolve: (module, name) -> what stands for it. Refuses by raising `PickleRefusedError`.
        persistent: The identifier of something outside the pickle -> what stands for it.

    Raises:
        PickleRefusedError: An import, a call or an instruction that is not allowed, or a broken program.
    """
    machine = _Machine(resolve, persistent)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if number >= MAX_INSTRUCTIONS:
                raise PickleRefusedError(f"describes its content in more than {MAX_INSTRUCTIONS:,} instructions")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (ValueError, LookupError, TypeError, OverflowError, EOFError) as error:
        raise PickleRefusedError(f"is damaged ({ascii(str(error))[1:-1][:_MAX_REASON]})") from error


class _Machine:
    def __init__(self, resolve: Callable[[str, str], Global], persistent: Callable[[object], object]) -> None:
        self.resolve = resolve
        self.persistent = persistent
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.handled = 0

    def handle(self, value: object) -> None:
        """Count what one instruction works on: a memo can hand the same long thing to many."""
        items = value if isinstance(value, tuple) else (value,)
        flat = sum(len(item) for item in items if isinstance(item, tuple))
        # Each pair of a list becomes a key and a value of a dictionary.
        nested = sum(len(item) for item in items if isinstance(item, list | dict))
        self.charge(len(items) + flat + 3 * nested)

    def charge(self, work: int) -> None:
        """Count work that instructions alone do not bound."""
        self.handled += work
        if self.handled > _MAX_HANDLED:
            raise PickleRefusedError("works on the same values again and again")

    def resolved(self, module: str, name: str) -> Global:
        """What stands for an imported name, made once."""
        self.charge(5)
        if (module, name) not in self.names:
            self.names[module, name] = self.resolve(module, name)
        return self.names[module, name]

    def step(self, name: str, argument: object) -> None:
        if name in _LITERALS:
            self.stack.append(_CONSTANTS.get(name, argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleRefusedError(f"uses the pickle instruction {name}")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def take(self, count: int) -> tuple[object, ...]:
        if count > len(self.stack):
            raise IndexError("stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.marked.pop()

    def pop_mark(self, _: object) -> None:
        self.since_mark()

    def duplicate(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: object) -> None:
        self.memo[_integer(index)] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: object) -> None:
        self.stack.append(self.memo[_integer(index)])

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise TypeError("an item is added to what is not a list")

    def update(self, items: list[object]) -> None:
        target = self.stack[-1]
        self.handle(tuple(items[::2]))
        pairs = _pairs(items)
        if isinstance(target, dict):
            target.update(pairs)
        elif not isinstance(target, Opaque):
            raise TypeError("a key is set on what is not a dictionary")

    def make_dictionary(self) -> None:
        items = self.since_mark()
        self.handle(tuple(items[::2]))
        self.stack.append(_pairs(items))

    def import_name(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(self.resolved(module, name))

    def import_from_stack(self, _: object) -> None:
        module, name = self.take(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("an import without a name")
        self.stack.append(self.resolved(module, name))

    def call(self, _: object) -> None:
        callee, arguments = self.take(2)
        if not isinstance(callee, Global) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is not a known name")
        if callee.build is None:
            raise PickleRefusedError(f"calls {callee.name!r}")
        self.handle(arguments)
        self.stack.append(callee.build(arguments))

    def set_state(self, _: object) -> None:
        # State is attributes: of no use for plain values, and never applied to anything.
        self.take(1)

    def refer(self, _: object) -> None:
        self.charge(6)
        self.stack.append(self.persistent(*self.take(1)))


def _integer(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise TypeError("a memo index is not a number")
    return value


def _pairs(items: list[object]) -> dict[Hashable, object]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def build_dictionary(arguments: tuple[object, ...]) -> dict[Hashable, object]:
    """A dictionary from the arguments of `OrderedDict`: none, or one list of pairs.

    Raises:
        TypeError: Other arguments.
    """
    match arguments:
        case ():
            return {}
        case ([*pairs],):
            return _pairs([item for pair in pairs for item in _pair(pair)])
    raise TypeError("a dictionary of what are not pairs")


def _pair(value: object) -> tuple[object, object]:
    match value:
        case (key, item):
            return key, item
    raise TypeError("a dictionary of what are not pairs")


def _key(value: object) -> Hashable:
    """A dictionary key, if it is flat: hashing a tuple nested without end would exhaust the C stack."""
    flat = value if isinstance(value, tuple) else (value,)
    kinds = str | bytes | int | float | None | Opaque | Global
    if not all(isinstance(item, kinds) for item in flat):
        raise TypeError("a dictionary key is neither text nor a number")
    if not all(-_MAX_KEY < item < _MAX_KEY for item in flat if isinstance(item, int | float)):
        raise ValueError("a dictionary key is an impossible number")
    return value


Action = Callable[[_Machine, object], None]

# Sets become lists, because their items need not be hashable here.
_ACTIONS: dict[str, Action] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda machine, _: machine.push([])),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.since_mark())),
    "DICT": lambda machine, _: machine.make_dictionary(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.take(3)),
    "APPEND": lambda machine, _: machine.extend([*machine.take(1)]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.since_mark())),
    "SETITEM": lambda machine, _: machine.update([*machine.take(2)]),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "GLOBAL": _Machine.import_name,
    "STACK_GLOBAL": _Machine.import_from_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
    "STOP": lambda machine, _: None,
}

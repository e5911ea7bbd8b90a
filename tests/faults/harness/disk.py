"""calls that were done -> the states of a disk that lost its power among them.

A disk keeps what was forced to it (fsync of a file: its bytes; fsync of a folder: the names in it). Of the rest
it may have kept anything: all, nothing, the beginning, some calls without those before them, names without
bytes, bytes as zeros, half of a write. Stricter than the common file systems, as POSIX allows; after ALICE
(https://www.usenix.org/conference/osdi14/technical-sessions/presentation/pillai).
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from harness.shim import Call

ROOT = 0
KEPT, LOST, ZERO, HALF = "kept", "lost", "zero", "half"


@dataclass
class Node:
    """A file or a folder, by whatever names it has.

    Attributes:
        entries: Names in a folder; None for a file.
        data: Bytes of a file.
    """

    entries: dict[str, int] | None = None
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Effect:
    """One change of a disk.

    Attributes:
        at: Number of the call.
        node: Whose bytes, or in which folder a name, is changed; it is durable when this is forced.
        name: The name that is set, or removed.
        child: What the name leads to; None removes it.
        source: Folder and name that a rename removes.
        offset: Where bytes are written; of a truncate, the size.
        data: The bytes; None for a truncate.
        durable: Number of the call that forced it; None where none did.
    """

    at: int
    node: int
    name: str = ""
    child: int | None = None
    source: tuple[int, str] | None = None
    offset: int = 0
    data: bytes | None = None
    durable: int | None = None

    @property
    def is_name(self) -> bool:
        """It changes a name, not bytes."""
        return bool(self.name)


class History:
    """Every change that a list of calls made below a folder.

    Args:
        root: The folder.
        before: What was in it, all of it durable; path -> bytes, None for a folder.
        calls: In order.
    """

    def __init__(self, root: Path, before: dict[str, bytes | None], calls: Sequence[Call]) -> None:
        self._root = root
        self._kinds: list[bool] = [True]  # whether a node is a folder
        self._live: dict[int, dict[str, int]] = {ROOT: {}}
        self._start: dict[int, Node] = {ROOT: Node({})}
        self.effects: list[Effect] = []
        self.marks: list[tuple[int, str]] = []
        self.length = len(calls)
        for path, data in sorted(before.items()):
            self._put(path, data)
        for at, call in enumerate(calls):
            self._replay(at, call)

    def _put(self, path: str, data: bytes | None) -> None:
        folder, name = self._find(self._root / path)
        node = self._new(is_folder=data is None)
        self._live[folder][name] = node
        self._start[folder].entries[name] = node  # type: ignore[index]
        self._start[node] = Node({} if data is None else None, bytearray(data or b""))

    def _new(self, *, is_folder: bool) -> int:
        self._kinds.append(is_folder)
        if is_folder:
            self._live[len(self._kinds) - 1] = {}
        return len(self._kinds) - 1

    def _find(self, path: PurePath) -> tuple[int, str]:
        folder = ROOT
        for part in path.parent.relative_to(self._root).parts:
            folder = self._live[folder][part]
        return folder, path.name

    def _node(self, path: PurePath) -> int | None:
        if path == self._root:
            return ROOT
        folder, name = self._find(path)
        return self._live[folder].get(name)

    def _replay(self, at: int, call: Call) -> None:
        if call.kind == "mark":
            self.marks.append((at, call.path))
        elif call.kind in ("create", "mkdir"):
            folder, name = self._find(PurePath(call.path))
            node = self._new(is_folder=call.kind == "mkdir")
            self._live[folder][name] = node
            self.effects.append(Effect(at, folder, name, node))
        elif call.kind in ("unlink", "rmdir"):
            folder, name = self._find(PurePath(call.path))
            self._live[folder].pop(name, None)
            self.effects.append(Effect(at, folder, name))
        elif call.kind == "rename":
            self._rename(at, PurePath(call.path), PurePath(call.other))
        elif call.kind in ("write", "more", "truncate", "empty"):
            node_found = self._node(PurePath(call.path))
            if node_found is not None:
                data = call.data if call.kind in ("write", "more") else None
                self.effects.append(Effect(at, node_found, offset=call.offset, data=data))
        elif call.kind == "fsync":
            self._force(at, self._node(PurePath(call.path)))

    def _rename(self, at: int, path: PurePath, other: PurePath) -> None:
        (folder, name), (to, new) = self._find(path), self._find(other)
        node = self._live[folder].pop(name)
        self._live[to][new] = node
        self.effects.append(Effect(at, to, new, node, source=(folder, name)))

    def _force(self, at: int, node: int | None) -> None:
        for number, effect in enumerate(self.effects):
            if effect.node == node and effect.durable is None:
                self.effects[number] = Effect(**{**effect.__dict__, "durable": at})

    def state(self, at: int, fate: Callable[[Effect], str]) -> "State":
        """The disk after it lost power before call `at`; `fate` says what became of what was not forced."""
        nodes = {number: Node({} if is_folder else None) for number, is_folder in enumerate(self._kinds)}
        for number, node in self._start.items():
            nodes[number] = Node(None if node.entries is None else dict(node.entries), bytearray(node.data))
        for effect in self.effects:
            if effect.at >= at:
                break
            kept = KEPT if effect.durable is not None and effect.durable < at else fate(effect)
            if kept != LOST:
                _apply(nodes, effect, kept)
        return State(nodes)

    def states(self, count: int, seed: int) -> Iterator[tuple[int, "State", str]]:
        """Up to `count` different states: for each the number of calls before it, and how it came about."""
        seen: set[tuple[int, str]] = set()
        choose = random.Random(seed)
        for rounds in range(ROUNDS):
            order = [(at, n) for at in range(1, self.length + 1) for n in range(len(FATES) if rounds == 0 else 3)]
            for at, number in choose.sample(order, len(order)):
                how, fate = _fate(self.effects, at, choose, rounds, number)
                state = self.state(at, fate)
                key = (at, state.digest())
                if key not in seen:
                    seen.add(key)
                    yield at, state, how
                if len(seen) == count:
                    return


FATES: tuple[tuple[str, Callable[[Effect], str]], ...] = (
    ("nothing unforced kept", lambda effect: LOST),
    ("all kept", lambda effect: KEPT),
    ("names kept, bytes lost", lambda effect: KEPT if effect.is_name else LOST),
    ("names kept, bytes zero", lambda effect: KEPT if effect.is_name else ZERO),
    ("bytes kept, names lost", lambda effect: LOST if effect.is_name else KEPT),
)
"""What may become of all that was not forced."""

ROUNDS = 12
"""How often random fates are drawn for each call."""


def _fate(
    effects: Sequence[Effect], at: int, choose: random.Random, rounds: int, number: int
) -> tuple[str, Callable[[Effect], str]]:
    if rounds == 0:
        return FATES[number]
    if number == 0:
        limit = choose.randrange(at)
        return f"kept up to call {limit}", lambda effect: KEPT if effect.at <= limit else LOST
    chance = {effect.at: choose.choice((KEPT, LOST, ZERO, HALF)) for effect in effects if effect.at < at}

    def fate(effect: Effect) -> str:
        drawn = chance[effect.at]
        return KEPT if effect.is_name and drawn in (ZERO, HALF) else drawn

    return "a random part kept", fate


def _apply(nodes: dict[int, Node], effect: Effect, kept: str) -> None:
    node = nodes[effect.node]
    if effect.is_name and node.entries is not None:
        if effect.source is not None:
            entries = nodes[effect.source[0]].entries
            if entries is not None and entries.get(effect.source[1]) == effect.child:
                del entries[effect.source[1]]
        if effect.child is None:
            node.entries.pop(effect.name, None)
        else:
            node.entries[effect.name] = effect.child
        return
    if effect.data is None:
        del node.data[effect.offset :]
        node.data.extend(bytes(effect.offset - len(node.data)))
        return
    data = effect.data[: len(effect.data) // 2] if kept == HALF else effect.data
    data = bytes(len(data)) if kept == ZERO else data
    node.data.extend(bytes(max(effect.offset + len(data) - len(node.data), 0)))
    node.data[effect.offset : effect.offset + len(data)] = data


class State:
    """What is on a disk."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self._nodes = nodes

    def walk(self, node: int = ROOT, path: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Every path and its bytes; None for a folder.."""
        for name, child in sorted((self._nodes[node].entries or {}).items()):
            here = f"{path}{name}"
            if self._nodes[child].entries is None:
                yield here, bytes(self._nodes[child].data)
            else:
                yield here, None
                yield from self.walk(child, f"{here}/")

    def digest(self) -> str:
        """One hash of everything."""
        total = hashlib.sha256()
        for path, data in self.walk():
            total.update(path.encode() + (b"/" if data is None else hashlib.sha256(data).digest()))
        return total.hexdigest()

    def write(self, directory: Path) -> None:
        """Make it so in an empty folder."""
        for path, data in self.walk():
            if data is None:
                (directory / path).mkdir()
            else:
                (directory / path).write_bytes(data)


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every path below a folder and its bytes; None for a folder."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
    }

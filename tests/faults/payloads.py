"""Hostile files by the hundred, and the process that reads them: `python payloads.py JOBS RESULTS`.

A pickle is written here by hand, opcode by opcode, so that a payload may name what is not installed, and so that
writing it runs nothing. Whoever runs this module as a program reads files with llmt (or, to prove that a payload
is alive, with torch) and writes what happened as one line of JSON for each.
"""

import bz2
import contextlib
import gzip
import importlib
import importlib.util
import io
import json
import lzma
import marshal
import math
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# ---------------------------------------------------------------------------------------------------------
# pickles, opcode by opcode


@dataclass(frozen=True)
class Name:
    """A reference to `module.name`."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """`callee(*arguments)`, and BUILD with `state` where there is one; `by` is the opcode of the call."""

    callee: Any
    arguments: Any = ()
    state: Any = None
    by: bytes = b"R"


@dataclass(frozen=True)
class Persistent:
    """Something outside the pickle."""

    identifier: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    data: bytes


def encode(value: Any, protocol: int = 2) -> bytes:
    """A whole pickle."""
    head = bytes([0x80, protocol]) if protocol >= 2 else b""
    return head + _body(value, protocol) + b"."


def _body(value: Any, protocol: int) -> bytes:
    match value:
        case Raw(data):
            return data
        case Name(module, name):
            if protocol >= 4:
                return _scalar(module, protocol) + _scalar(name, protocol) + b"\x93"
            return f"c{module}\n{name}\n".encode()
        case Call(callee, arguments, state, by):
            made = _body(callee, protocol) + _body(arguments, protocol) + by
            return made if state is None else made + _body(state, protocol) + b"b"
        case Persistent(identifier):
            return _body(identifier, protocol) + b"Q"
        case dict():
            inside = b"".join(_body(key, protocol) + _body(item, protocol) for key, item in value.items())
            return b"(" + inside + b"d" if protocol == 0 else b"}(" + inside + b"u"
        case list():
            inside = b"".join(_body(item, protocol) for item in value)
            return b"(" + inside + b"l" if protocol == 0 else b"](" + inside + b"e"
        case tuple():
            return b"(" + b"".join(_body(item, protocol) for item in value) + b"t"
    return _scalar(value, protocol)


def _scalar(value: Any, protocol: int) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return (b"I01\n" if value else b"I00\n") if protocol < 2 else (b"\x88" if value else b"\x89")
        case int():
            return _integer(value, protocol)
        case float():
            return b"F%r\n" % value if protocol == 0 else b"G" + struct.pack(">d", value)
        case str():
            return _text(value, protocol)
        case bytes():
            if protocol >= 3:
                return b"B" + struct.pack("<I", len(value)) + value
            return _body(Call(Name("_codecs", "encode"), (value.decode("latin-1"), "latin1")), protocol)
    raise TypeError(type(value))


def _integer(value: int, protocol: int) -> bytes:
    if protocol >= 1 and -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    if protocol < 2:
        return b"L%dL\n" % value
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _text(value: str, protocol: int) -> bytes:
    if protocol == 0:
        safe = value.replace("\\", "\\u005c").replace("\n", "\\u000a").replace("\r", "\\u000d").replace("\0", "\\u0000")
        return b"V" + safe.encode("raw-unicode-escape") + b"\n"
    data = value.encode("utf-8", "surrogatepass")
    if protocol >= 4 and len(data) < 256:
        return b"\x8c" + bytes([len(data)]) + data
    return b"X" + struct.pack("<I", len(data)) + data


def call(name: str, *arguments: Any) -> Call:
    """A call of `module:name`."""
    module, _, attribute = name.partition(":")
    return Call(Name(module, attribute), arguments)


def ref(name: str) -> Name:
    """A reference to `module:name`."""
    module, _, attribute = name.partition(":")
    return Name(module, attribute)


def tensor(key: Any = "0", *, legacy: bool = False, **changed: Any) -> Call:
    """Four float32 as `torch.save` describes them; any part of the description can be `changed`."""
    identifier = ("storage", Name("torch", "FloatStorage"), key, changed.get("place", "cpu"), 4)
    hooks = changed.get("hooks", Call(Name("collections", "OrderedDict")))
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (
            changed.get("storage", Persistent((*identifier, None) if legacy else identifier)),
            changed.get("offset", 0), changed.get("shape", (4,)), changed.get("strides", (1,)), False, hooks,
        ),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# containers

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def archive(program: bytes, storages: Mapping[str, bytes] | None = None, **members: bytes) -> bytes:
    """A zip archive as `torch.save` writes it, around any pickle; `members` are added under `x/`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("x/data.pkl", program)
        out.writestr("x/byteorder", "little")
        for key, data in {"0": FOUR, **(storages or {})}.items():
            out.writestr(f"x/data/{key}", data)
        out.writestr("x/version", "3\n")
        for name, data in members.items():
            out.writestr(f"x/{name}", data)
    return buffer.getvalue()


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return buffer.getvalue()


def legacy(written_in: int = 2, /, **parts: bytes) -> bytes:
    """A file in the format before PyTorch 1.6: five pickles and the storages; each part can be replaced."""
    sizes = {"short": 2, "int": 4, "long": 4}
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    whole = {
        "magic": encode(0x1950A86A20F9469CFC6C, written_in),
        "protocol": encode(1001, written_in),
        "sys_info": encode(info, written_in),
        "object": encode({"a": tensor(legacy=True)}, written_in),
        "keys": encode(["0"], written_in),
        "storages": struct.pack("<q", 4) + FOUR,
    }
    return b"".join({**whole, **parts}.values())


def tarred(**members: bytes) -> bytes:
    """A file in the format before PyTorch 0.1.10: a tar archive of pickles."""
    whole = {"sys_info": encode({}), "pickle": encode({}), "storages": encode(0) + encode([]), "tensors": encode(0)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, data in {**whole, **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------
# malicious files


@dataclass(frozen=True)
class Place:
    """Where payloads work: the file they make, the folder they remove, and what they find planted."""

    root: Path

    @property
    def canary(self) -> str:
        return str(self.root / "canary")

    @property
    def victim(self) -> Path:
        return self.root / "victim"

    @property
    def planted(self) -> Path:
        return self.root / "planted"

    @property
    def shadow(self) -> Path:
        return self.root / "shadow"

    @property
    def shell(self) -> str:
        return f"touch {self.canary}"

    @property
    def script(self) -> str:
        return f"open({self.canary!r}, 'w').close()"

    def happened(self) -> bool:
        """Whether a payload ran."""
        return os.path.lexists(self.canary) or not (self.victim / "file").exists()

    def restore(self) -> None:
        """Make it as if nothing had run."""
        self.victim.mkdir(exist_ok=True)
        (self.victim / "file").write_text("still here")
        if os.path.isdir(self.canary) and not os.path.islink(self.canary):
            os.rmdir(self.canary)
        elif os.path.lexists(self.canary):
            os.unlink(self.canary)


def plant(root: Path) -> Place:
    """Lay out what payloads lean on: modules that make the canary when they are imported, and nested files."""
    place = Place(root)
    place.restore()
    place.planted.mkdir()
    (place.planted / "evil_by_name.py").write_text(f"{place.script}\nclass StateDict(dict):\n    pass\n")
    (place.planted / "hubconf.py").write_text(f"def model():\n    {place.script}\n")
    # Numbers that stand for os.system in any unpickler of the process: EXT1, EXT2 and EXT4.
    register = "".join(f"copyreg.add_extension('os', {name!r}, {code})\n" for name, code in EXTENSIONS.items())
    (place.planted / "sitecustomize.py").write_text(f"import copyreg\n{register}")
    evil = encode(call("os:system", place.shell))
    (place.planted / "evil.pkl").write_bytes(evil)
    (place.planted / "evil.pt").write_bytes(archive(evil))
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    (place.planted / "evil.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + evil)
    for package in ("torch", "transformers", "safetensors", "accelerate"):
        (place.shadow / package).mkdir(parents=True)
        (place.shadow / package / "__init__.py").write_text(f"{place.script}\n")
    return place


EXTENSIONS = {"system": 0x11, "popen": 0x0111, "mkdir": 0x010011}


@dataclass(frozen=True)
class Evil:
    """One malicious file or directory.

    `live`: torch.load(weights_only=False) of it, or of `torch_file` in it, runs the payload.
    """

    name: str
    path: Path
    live: bool = False
    torch_file: str = ""


def malicious(directory: Path, place: Place) -> list[Evil]:
    """Every malicious file, written into `directory`."""
    files: list[Evil] = []

    def add(name: str, data: bytes, *, live: bool, ending: str = ".pt") -> None:
        path = directory / f"{len(files):03d}-{name.replace(' ', '-').replace('/', '_')}{ending}"
        path.write_bytes(data)
        files.append(Evil(name, path, live))

    for name, (gadget, live, protocol) in gadgets(place).items():
        add(f"call {name}", archive(encode({"model": {"a": tensor()}, "x": gadget}, protocol)), live=live)
    for name, (program, live) in programs(place).items():
        add(f"program {name}", archive(program), live=live)
    for name, (value, live) in positions(place).items():
        add(f"position {name}", archive(encode(value, 4)), live=live)
    for name, (value, live) in rebuilds(place).items():
        add(f"rebuild {name}", archive(encode({"model": {"a": value}})), live=live)
    for name, (data, live, ending) in containers(place).items():
        add(f"container {name}", data, live=live, ending=ending)
    for name, members in directories(place).items():
        path = directory / f"{len(files):03d}-{name.replace(' ', '-')}"
        path.mkdir()
        for file, data in members.items():
            (path / file).write_bytes(data)
        (worst,) = [file for file, data in members.items() if b"system" in data]
        files.append(Evil(f"directory {name}", path, live=True, torch_file=worst))
    return files


def gadgets(place: Place) -> dict[str, tuple[Any, bool, int]]:
    """Payload by name: the call, whether it is alive here, the protocol."""
    old = sys.version_info < (3, 13)
    live = _os_gadgets(place) | _python_gadgets(place) | _call_gadgets(place) | _file_gadgets(place)
    live |= _torch_gadgets(place) | _run_gadgets(place)
    loads = "lib2to3.pgen2.grammar:Grammar"
    pickled = encode(call("os:system", place.shell))
    table = {name: (gadget, True, 4 if _is_dotted(gadget) else 2) for name, gadget in live.items()}
    table["lib2to3 Grammar.loads"] = (call(f"{loads}.loads", call(loads), pickled), old, 4)
    table |= {name: (call(name, *arguments), False, 2) for name, arguments in _inert_calls(place).items()}
    return table


def _is_dotted(value: Any) -> bool:
    match value:
        case Name(name=name):
            return "." in name
        case Call(callee, arguments, state):
            return _is_dotted(callee) or _is_dotted(arguments) or _is_dotted(state)
        case tuple() | list():
            return any(map(_is_dotted, value))
    return False


def _os_gadgets(place: Place) -> dict[str, Call]:
    shell, canary = place.shell, place.canary
    touch = ["touch", canary]
    return {
        "os.system": call("os:system", shell),
        "posix.system": call("posix:system", shell),
        "os.popen": call("os:popen", shell),
        "os.execvp": call("os:execvp", "touch", touch),
        "os.posix_spawnp": call("os:posix_spawnp", "touch", touch, {}),
        "os.spawnvp": call("os:spawnvp", 0, "touch", touch),
        "os.open": call("os:open", canary, os.O_CREAT | os.O_WRONLY),
        "os.mkdir": call("os:mkdir", canary),
        "os.makedirs": call("os:makedirs", canary),
        "os.mknod": call("os:mknod", canary),
        "os.symlink": call("os:symlink", "/", canary),
        "os.rename": call("os:rename", str(place.victim / "file"), str(place.victim / "moved")),
        "os.remove": call("os:remove", str(place.victim / "file")),
        "os.link": call("os:link", str(place.victim / "file"), canary),
        "subprocess.Popen": call("subprocess:Popen", touch),
        "subprocess.call": call("subprocess:call", touch),
        "subprocess.run": call("subprocess:run", touch),
        "subprocess.check_call": call("subprocess:check_call", touch),
        "subprocess.check_output": call("subprocess:check_output", touch),
        "subprocess.getoutput": call("subprocess:getoutput", shell),
        "subprocess.getstatusoutput": call("subprocess:getstatusoutput", shell),
        "multiprocessing spawnv": call(
            "multiprocessing.util:spawnv_passfds", b"/bin/sh", [b"sh", b"-c", shell.encode()], ()
        ),
        "_posixsubprocess through uuid": call("uuid:_get_command_stdout", "touch", canary),
        "asyncio": call("asyncio:run", call("asyncio:create_subprocess_shell", shell)),
        "imaplib stream": call("imaplib:IMAP4_stream", shell),
        "pydoc.pipepager": call("pydoc:pipepager", "", shell),
        "webbrowser": Call(
            call("operator:methodcaller", "open", canary), (call("webbrowser:GenericBrowser", "touch"),)
        ),
        "ctypes": Call(call("builtins:getattr", call("ctypes:CDLL", None), "system"), (shell.encode(),)),
    }


def _python_gadgets(place: Place) -> dict[str, Call]:
    script, shell = place.script, place.shell
    compiled = call("builtins:compile", script, "x", "exec")
    code = marshal.dumps(compile(script, "x", "exec"))
    return {
        "eval": call("builtins:eval", script),
        "exec": call("builtins:exec", script),
        "__builtin__.eval": call("__builtin__:eval", script),
        "__builtin__.execfile or exec": call("__builtin__:exec", script),
        "compile": Call(call("types:FunctionType", compiled, {})),
        "marshal": Call(call("types:FunctionType", call("marshal:loads", code), {})),
        "__import__": call("builtins:__import__", "evil_by_name"),
        "getattr": Call(call("builtins:getattr", call("builtins:__import__", "os"), "system"), (shell,)),
        "importlib": call("importlib:import_module", "evil_by_name"),
        "importlib._bootstrap": call("importlib._bootstrap:_gcd_import", "evil_by_name"),
        "pkgutil.resolve_name": Call(call("pkgutil:resolve_name", "os:system"), (shell,)),
        "pydoc.locate": Call(call("pydoc:locate", "os.system"), (shell,)),
        "runpy.run_path": call("runpy:run_path", str(place.planted / "evil_by_name.py")),
        "runpy.run_module": call("runpy:run_module", "evil_by_name"),
        "runpy._run_code": call("runpy:_run_code", compiled, {}),
        "name of a planted module": call("evil_by_name:StateDict"),
    }


def _run_gadgets(place: Place) -> dict[str, Call]:
    script, shell = place.script, place.shell
    source = f"!!python/object/apply:os.system ['{shell}']"
    return {
        "timeit": call("timeit:timeit", "pass", script),
        "code": call("code:InteractiveInterpreter.runsource", call("code:InteractiveInterpreter"), script),
        "cProfile": call("cProfile:run", script),
        "profile": call("profile:run", script),
        "trace": call("trace:Trace.run", call("trace:Trace"), script),
        "bdb": call("bdb:Bdb.run", call("bdb:Bdb"), script),
        "pickle.loads": call("pickle:loads", encode(call("os:system", shell))),
        "_pickle.loads": call("_pickle:loads", encode(call("os:system", shell))),
        "pickle._loads": call("pickle:_loads", encode(call("os:system", shell))),
        "pickle.load": call("pickle:load", call("builtins:open", str(place.planted / "evil.pkl"), "rb")),
        "yaml.unsafe_load": call("yaml:unsafe_load", source),
        "numpy f2py": call("numpy.f2py.crackfortran:myeval", script),
        "numpy runstring": call("numpy.testing._private.utils:runstring", script, {}),
        "numpy.load": call("numpy:load", str(place.planted / "evil.npy"), None, True),
    }


def _call_gadgets(place: Place) -> dict[str, Call]:
    script, shell = place.script, place.shell
    system, module = ref("os:system"), call("importlib:import_module", "os")
    everything = call("builtins:vars", call("importlib:import_module", "builtins"))
    thread = call("threading:Thread", None, system, None, (shell,))
    return {
        "map": call("builtins:list", call("builtins:map", system, [shell])),
        "filter": call("builtins:list", call("builtins:filter", system, [shell])),
        "starmap": call("builtins:list", call("itertools:starmap", system, [(shell,)])),
        "functools.partial": Call(call("functools:partial", system, shell)),
        "functools.reduce": call("functools:reduce", ref("builtins:eval"), [script, {}]),
        "operator.attrgetter": Call(Call(call("operator:attrgetter", "system"), (module,)), (shell,)),
        "operator.methodcaller": Call(call("operator:methodcaller", "system", shell), (module,)),
        "operator.itemgetter": Call(Call(call("operator:itemgetter", "eval"), (everything,)), (script,)),
        "operator.call": call("operator:call", system, shell),
        "types.MethodType": Call(call("types:MethodType", system, shell)),
        "threading": call("threading:Thread.start", thread),
        "_thread": call("_thread:start_new_thread", system, (shell,)),
        "atexit": call("atexit:register", system, shell),
        "copyreg": call(
            "copyreg:_reconstructor", ref("subprocess:Popen"), ref("subprocess:Popen"), ["touch", place.canary]
        ),
    }


def _file_gadgets(place: Place) -> dict[str, Call]:
    canary, evil = place.canary, str(place.planted / "evil_by_name.py")
    path = call("pathlib:PosixPath", canary)
    handler = {"class": "logging.FileHandler", "filename": canary}
    return {
        "open": call("builtins:open", canary, "w"),
        "io.open": call("io:open", canary, "w"),
        "_io.FileIO": call("_io:FileIO", canary, "w"),
        "codecs.open": call("codecs:open", canary, "w"),
        "gzip.open": call("gzip:open", canary, "wb"),
        "zipfile": call("zipfile:ZipFile", canary, "w"),
        "tarfile": call("tarfile:open", canary, "w"),
        "pathlib.touch": call("pathlib:Path.touch", path),
        "pathlib.write_text": call("pathlib:Path.write_text", path, "x"),
        "shutil.rmtree": call("shutil:rmtree", str(place.victim)),
        "shutil.copy": call("shutil:copy", evil, canary),
        "shutil.move": call("shutil:move", str(place.victim), f"{place.victim}-moved/x"),
        "logging.FileHandler": call("logging:FileHandler", canary),
        "logging.config": call("logging.config:dictConfig", {"version": 1, "handlers": {"h": handler}}),
        "urlretrieve": call("urllib.request:urlretrieve", f"file://{evil}", canary),
        "numpy.savetxt": call("numpy:savetxt", canary, [1]),
        "numpy.memmap": call("numpy:memmap", canary, "uint8", "w+", 0, (4,)),
        "llmt itself": call("llmt.checkpoints.files:write_text_atomic", path, "x"),
    }


def _torch_gadgets(place: Place) -> dict[str, Call]:
    shell, canary = place.shell, place.canary
    evil = str(place.planted / "evil.pt")
    nested = archive(encode(call("os:system", shell)))
    unsafe = call("functools:partial", ref("torch:load"))
    keywords = (ref("torch:load"), (), {"weights_only": False}, None)
    return {
        "collect_env.run": call("torch.utils.collect_env:run", shell),
        "torch.load": Call(Call(unsafe.callee, unsafe.arguments, keywords), (evil,)),
        "a zip inside a zip": call("torch.storage:_load_from_bytes", nested),
        "_rebuild_from_type_v2": call(
            "torch._tensor:_rebuild_from_type_v2", ref("os:system"), ref("builtins:int"), (shell,), {}
        ),
        "hub._load_local": call("torch.hub:_load_local", str(place.planted), "model"),
        "hub.download": call("torch.hub:download_url_to_file", f"file://{evil}", canary),
        "datapipes decoder": call(
            "torch.utils.data.datapipes.utils.decoder:basichandlers", "pickle", encode(call("os:system", shell))
        ),
        "torch.save": call("torch:save", 1, canary),
        "torch.from_file": call("torch:from_file", canary, True, 4),
        "UntypedStorage.from_file": call("torch:UntypedStorage.from_file", canary, True, 16),
    }


def _inert_calls(place: Place) -> dict[str, tuple[Any, ...]]:
    """Names that give a way in but need more than one line, a terminal, a network or another system."""
    shell, script, canary = place.shell, place.script, place.canary
    nowhere = "http://127.0.0.1:9/x"
    return {
        "nt:system": (shell,),
        "commands:getoutput": (shell,),
        "popen2:popen2": (shell,),
        "os:_exit": (0,),
        "os:abort": (),
        "os:kill": (0, 0),
        "os:putenv": ("LD_PRELOAD", canary),
        "os:fork": (),
        "pty:spawn": (["touch", canary],),
        "pdb:run": (script,),
        "pdb:runeval": (script,),
        "doctest:debug_script": (script,),
        "code:interact": (),
        "builtins:breakpoint": (),
        "builtins:input": (),
        "builtins:setattr": (Name("builtins", "int"), "x", 1),
        "builtins:delattr": (Name("os", "path"), "join"),
        "builtins:globals": (),
        "builtins:type": ("X", (), {}),
        "builtins:super": (),
        "builtins:object": (),
        "builtins:property": (),
        "builtins:memoryview": (b"x",),
        "builtins:range": (10**18,),
        "builtins:pow": (10**9, 10**9),
        "builtins:print": ("\x1b[2J",),
        "sys:exit": (0,),
        "sys:setrecursionlimit": (10**9,),
        "sys:settrace": (None,),
        "gc:get_objects": (),
        "signal:raise_signal": (9,),
        "faulthandler:_sigsegv": (),
        "idlelib.calltip:get_entity": (script,),
        "idlelib.run:Executive": (),
        "distutils.spawn:spawn": (["touch", canary],),
        "distutils.file_util:write_file": (canary, ["x"]),
        "ensurepip:bootstrap": (),
        "pip:main": (["--version"],),
        "venv:create": (canary,),
        "site:addsitedir": (str(place.planted),),
        "zipimport:zipimporter": (canary,),
        "sqlite3:connect": (canary,),
        "shelve:open": (canary,),
        "dbm.dumb:open": (canary, "n"),
        "tempfile:mkdtemp": ("x",),
        "mmap:mmap": (-1, 4096),
        "socket:create_connection": (("127.0.0.1", 9),),
        "socket:socket": (),
        "_socket:socket": (),
        "ssl:get_server_certificate": (("127.0.0.1", 9),),
        "http.client:HTTPConnection": ("127.0.0.1",),
        "urllib.request:urlopen": (nowhere,),
        "requests:get": (nowhere,),
        "httpx:get": (nowhere,),
        "ftplib:FTP": ("127.0.0.1",),
        "smtplib:SMTP": ("127.0.0.1", 9),
        "telnetlib:Telnet": ("127.0.0.1", 9),
        "xmlrpc.client:ServerProxy": (nowhere,),
        "multiprocessing:Process": (None, Name("os", "system"), None, (shell,)),
        "multiprocessing.connection:Client": (("127.0.0.1", 9),),
        "concurrent.futures:ProcessPoolExecutor": (1,),
        "asyncio:get_event_loop": (),
        "typing:ForwardRef": (script,),
        "unittest.mock:_importer": ("evil_by_name",),
        "collections:namedtuple": ("x", "y"),
        "types:CodeType": (),
        "types:SimpleNamespace": (),
        "copyreg:add_extension": ("os", "system", 1),
        "copyreg:__newobj__": (Name("subprocess", "Popen"), ["touch", canary]),
        "codecs:lookup": ("x",),
        "codecs:register": (Name("os", "system"),),
        "weakref:finalize": (Name("os", "path"), Name("os", "system"), shell),
        "contextlib:redirect_stdout": (None,),
        "xml.etree.ElementTree:parse": (canary,),
        "jinja2:Template": ("{{ x }}",),
        "sympy:sympify": (script,),
        "pandas:read_pickle": (str(place.planted / "evil.pkl"),),
        "joblib:load": (str(place.planted / "evil.pkl"),),
        "dill:loads": (b"N.",),
        "cloudpickle:loads": (b"N.",),
        "tensorflow:io.read_file": (canary,),
        "torch:load": (str(place.planted / "evil.pt"),),
        "torch.serialization:load": (str(place.planted / "evil.pt"),),
        "torch.serialization:add_safe_globals": ([Name("os", "system")],),
        "torch.hub:load": (str(place.planted), "model"),
        "torch.hub:load_state_dict_from_url": (nowhere,),
        "torch.utils.model_zoo:load_url": (nowhere,),
        "torch.jit:load": (canary,),
        "torch.jit:script": (Name("os", "system"),),
        "torch.jit._pickle:build_intlist": ([1],),
        "torch.jit:CompilationUnit": ("def f(): pass",),
        "torch:classes.load_library": (canary,),
        "torch:ops.load_library": (canary,),
        "torch.package:PackageImporter": (canary,),
        "torch.utils.cpp_extension:load_inline": ("x", ""),
        "torch.utils.bottleneck.__main__:run_cprofile": (script, {}),
        "torch.utils._config_module:ConfigModule.load_config": (b"",),
        "torch._dynamo.guards:GuardBuilder.get": (script,),
        "torch.fx.experimental.symbolic_shapes:ShapeEnv.evaluate_guards_expression": (script, []),
        "torch._inductor.runtime.compile_tasks:_reload_python_module": ("x", canary),
        "torch.distributed.rpc.internal:_run_function": (b"",),
        "torch.multiprocessing:spawn": (Name("os", "system"),),
        "torch.cuda:set_device": (0,),
        "torch:set_default_device": ("meta",),
        "torch:manual_seed": (0,),
        "torch:tensor": ([1],),
        "torch:randn": (4,),
        "torch:compile": (Name("os", "system"),),
        "numpy:fromfile": (canary,),
        "numpy:frombuffer": (b"x",),
        "numpy.lib.npyio:NpzFile": (canary,),
        "numpy.ctypeslib:load_library": ("x", canary),
        "transformers:AutoModel.from_pretrained": (nowhere,),
        "transformers.dynamic_module_utils:get_class_from_dynamic_module": ("x.Y", canary),
        "datasets:load_dataset": (nowhere,),
        "peft:PeftModel.from_pretrained": (None, canary),
        "safetensors.torch:save_file": ({}, canary),
        "llmt.cli.app:run": (["--version"],),
        "llmt.models.load:load_model": (canary,),
        "__main__:Payload": (),
    }


def programs(place: Place) -> dict[str, tuple[bytes, bool]]:
    """Ways to write a payload down: name -> the pickle, whether it is alive."""
    shell, quoted = place.shell, place.shell.encode()
    system = call("os:system", shell)
    text = _text(shell, 4)
    good = {"model": {"a": tensor()}}
    body = _body(good, 2)
    short = b"\x8c\x02os\x94\x8c\x06system\x94"
    spawned = _body(Call(ref("builtins:map"), (ref("os:system"), [shell]), by=b"\x81"), 4)
    whole = _body(ref("builtins:tuple"), 4)
    found = {f"protocol {n}": (encode({"model": {"a": tensor()}, "x": system}, max(n, 1)), True) for n in range(1, 6)}
    found |= {f"bare call in protocol {n}": (encode(system, n), True) for n in range(6)}
    found |= {
        "INST": (b"(S'" + quoted + b"'\nios\nsystem\n.", True),
        "OBJ": (b"(cos\nsystem\nS'" + quoted + b"'\no.", True),
        "GLOBAL": (b"cposix\nsystem\n(S'" + quoted + b"'\ntR.", True),
        "GLOBAL of bytes": (b"cposix\nsystem\n(U" + bytes([len(quoted)]) + quoted + b"tR.", len(quoted) < 256),
        "STACK_GLOBAL": (b"\x80\x04" + short + b"\x93" + text + b"\x85R.", True),
        "STACK_GLOBAL from the memo": (b"\x80\x04" + short + b"00h\x00h\x01\x93" + text + b"\x85R.", True),
        "STACK_GLOBAL of escapes": (b"\x80\x04V\\u006f\\u0073\nV\\u0073ystem\n\x93" + text + b"\x85R.", True),
        "STACK_GLOBAL behind a frame": (b"\x80\x04\x95" + struct.pack("<Q", len(short)) + short + b"\x93" + text
                                       + b"\x85R.", True),
        "REDUCE of a memoised name": (b"\x80\x02cos\nsystem\nq\x050h\x05" + text + b"\x85R.", True),
        "DUP": (b"\x80\x02cos\nsystem\n2" + text + b"\x85R.", True),
        "NEWOBJ": (b"\x80\x04" + whole + spawned + b"\x85\x81.", True),
        "NEWOBJ_EX": (b"\x80\x04" + whole + spawned + b"\x85}\x92.", True),
        "EXT1": (b"\x80\x02\x82\x11" + _text(shell, 2) + b"\x85R.", True),
        "EXT2": (b"\x80\x02\x83\x11\x01" + _text(shell, 2) + b"\x85R.", True),
        "EXT4": (b"\x80\x02\x84\x11\x00\x01\x00" + _text(place.canary, 2) + b"\x85R.", True),
        "POP hides the result": (b"\x80\x02" + _body(system, 2) + b"0" + body + b".", True),
        "POP_MARK hides the result": (b"\x80\x02(" + _body(system, 2) + b"1" + body + b".", True),
        "PROTO in the middle": (b"\x80\x02" + _body(system, 2) + b"0\x80\x04" + body + b".", True),
        "PROTO from the future": (b"\x80\xff" + _body(system, 2) + b".", False),
        "GET of 4,000 digits": (b"g" + b"9" * 4000 + b"\n.", False),
        "dictionary in itself": (b"\x80\x02}q\x00X\x05\0\0\0modelh\x00s.", False),
        "list in itself": (b"\x80\x02]q\x00h\x00a.", False),
        "PERSID": (b"Pcos\nsystem\n.", False),
        "NEXT_BUFFER": (b"\x80\x05\x97.", False),
        "READONLY_BUFFER": (b"\x80\x05B\x01\0\0\0x\x98.", False),
        "dotted through torch": (encode(Call(ref("torch:serialization.os.system"), (shell,)), 4), True),
        "dotted through torch._utils": (encode(Call(ref("torch._utils:torch.serialization.os.system"), (shell,)), 4),
                                        True),
        "dotted through argparse": (encode(Call(ref("argparse:_os.system"), (shell,)), 4), True),
        "dotted through collections": (encode(Call(ref("collections:_sys.modules.get"), ("os",)), 4), False),
        "dotted into an allowed name": (encode(ref("collections:OrderedDict.__init__.__globals__"), 4), False),
        "dotted into a builder": (encode(ref("torch._utils:_rebuild_tensor_v2.__globals__"), 4), False),
        "space in the module": (b"cos \nsystem\n(S'x'\ntR.", False),
        "no module": (b"c\nsystem\n(S'x'\ntR.", False),
        "relative module": (b"c.os\nsystem\n(S'x'\ntR.", False),
        "line break in a name": (b"\x80\x04\x8c\x03os\n\x8c\x06system\x93\x8c\x01x\x85R.", False),
        "escape in a name": (b"\x80\x04\x8c\x05o\x1b[2J\x8c\x06system\x93\x8c\x01x\x85R.", False),
        "markup in a name": (b"\x80\x04\x8c\x05[red]\x8c\x06system\x93\x8c\x01x\x85R.", False),
        "long name": (b"\x80\x04X\x40\x42\x0f\x00" + b"o" * 1_000_000 + b"\x8c\x06system\x93.", False),
        "lone surrogate in a name": (b"\x80\x04\x8c\x03\xed\xa0\x80\x8c\x06system\x93.", False),
        "name that is bytes": (b"\x80\x04C\x02osC\x06system\x93.", False),
    }  # fmt: skip
    return found


def positions(place: Place) -> dict[str, tuple[Any, bool]]:
    """Places in a checkpoint where a payload can stand: name -> the value, whether it is alive."""
    bad, good = call("os:system", place.shell), {"a": tensor()}
    space = call("argparse:Namespace")
    partial = Call(call("functools:partial", Name("builtins", "int")).callee, (Name("builtins", "int"),))
    state = Call(partial.callee, partial.arguments, (Name("os", "system"), (place.shell,), {}, None))
    table: dict[str, Any] = {
        "optimizer state": {"model": good, "optimizer": {"state": {0: {"exp_avg": bad}}}},
        "optimizer group": {"model_state_dict": good, "optimizer_state_dict": {"param_groups": [{"lr": bad}]}},
        "scheduler": {"state_dict": good, "lr_schedulers": [{"last_epoch": bad}]},
        "lightning": {"state_dict": good, "hyper_parameters": bad, "callbacks": {}},
        "random state": {"model": good, "rng_state": {"python": bad}},
        "arguments": {"model": good, "args": Call(space.callee, (), {"lr": bad})},
        "second model": {"model": good, "ema": {"a": bad}},
        "unused wrapper": {"model_state_dict": good, "model": bad},
        "tensor value": {"a": tensor(), "b": bad},
        "dict key": {bad: 1, "model": good},
        "tuple key": {(1, bad): 1, "model": good},
        "list": {"model": good, "x": [1, [2, [bad]]]},
        "set": {"model": good, "x": Raw(b"\x8f(" + _body(bad, 4) + b"\x90")},
        "frozenset": {"model": good, "x": Raw(b"(" + _body(bad, 4) + b"\x91")},
        "state of a partial": {"model": good, "x": Call(state)},
        "state of an ordered dict": {"model": good, "x": Call(ref("collections:OrderedDict"), (), {"_metadata": bad})},
        "state of the state dict": Call(ref("collections:OrderedDict"), ([("a", tensor())],), {"_metadata": bad}),
        "argument of an ordered dict": Call(ref("collections:OrderedDict"), ([("a", bad)],)),
        "default factory": {"model": good, "x": call("collections:defaultdict", bad)},
        "argument of a harmless name": {"model": good, "x": call("collections:Counter", bad)},
        "tensor offset": {"a": tensor(offset=bad)},
        "tensor shape": {"a": tensor(shape=(bad,))},
        "tensor strides": {"a": tensor(strides=bad)},
        "tensor hooks": {"a": tensor(hooks=bad)},
        "tensor storage": {"a": tensor(storage=bad)},
        "storage key": {"a": tensor(bad)},
        "storage place": {"a": tensor(place=bad)},
        "storage identifier": {"a": tensor(storage=Persistent(bad))},
        "storage type": {"a": tensor(storage=Persistent(("storage", bad, "0", "cpu", 4)))},
        "overwritten key": {"model": good, "x": Raw(b"}" + b"\x8c\x01k" + _body(bad, 4) + b"s\x8c\x01kK\x01s")},
        "numpy array of objects": {"model": good, "x": call("numpy:array", [bad])},
    }
    table["state of a date"] = {"model": good, "x": Call(ref("datetime:date"), (bad,))}
    table["subclass of a state dict"] = call("evil_by_name:StateDict")
    return {name: (value, True) for name, value in table.items()}


def rebuilds(place: Place) -> dict[str, tuple[Any, bool]]:
    """What weights_only lets through and has no place in weights; name -> the value under a parameter's name."""
    hooks = Call(Name("collections", "OrderedDict"))
    layout = call("torch.serialization:_get_layout", "torch.sparse_coo")
    system = call("os:system", place.shell)
    utils = "torch._utils:_rebuild_"
    wrapper = ref("torch.testing._internal.two_tensor:TwoTensor")
    cpu = call("torch:device", "cpu")
    table: dict[str, Any] = {
        "sparse": call(f"{utils}sparse_tensor", layout, (tensor(), tensor(), (4,))),
        "sparse csr": call(f"{utils}sparse_csr_tensor", layout, (tensor(), tensor(), tensor(), (4,))),
        "meta": call(f"{utils}meta_tensor_no_storage", Name("torch", "float32"), (4,), (1,), False),
        "wrapper subclass": call(f"{utils}wrapper_subclass", wrapper, Name("torch", "float32"), (4,), (1,), 0, layout,
                                 cpu, False),
        "quantised": call(f"{utils}qtensor", tensor().arguments[0], 0, (4,), (1,), (Name("torch", "qint8"), 0.1, 0),
                          False, hooks),
        "nested": call(f"{utils}nested_tensor", tensor(), tensor(), tensor(), tensor()),
        "device from numpy": call(f"{utils}device_tensor_from_numpy", tensor(), Name("torch", "float32"), "cpu", False),
        "from type": call("torch._tensor:_rebuild_from_type_v2", ref("torch._utils:_rebuild_tensor_v2"),
                          Name("torch", "Tensor"), tensor().arguments, {}),
        "tensor class": call("torch:Tensor", [1.0]),
        "storage class": call("torch.storage:TypedStorage", 4),
        "float storage": call("torch:FloatStorage", 4),
        "typed storage from bytes": call("torch.storage:_load_from_bytes", b""),
        "dtensor": call("torch.distributed.tensor:DTensor", tensor()),
        "fake tensor": call("torch._subclasses.fake_tensor:FakeTensor", tensor()),
        "generator": call("torch:Generator"),
        "linear layer": Call(ref("torch.nn.modules.linear:Linear"), (), {"weight": tensor()}, by=b"\x81"),
        "sequential": Call(ref("torch.nn.modules.container:Sequential"), (), {"_modules": {}}, by=b"\x81"),
        "optimizer": Call(ref("torch.optim.adamw:AdamW"), (), {"state": {}}, by=b"\x81"),
        "transformers model": Call(ref("transformers:GPT2LMHeadModel"), (), {"a": 1}, by=b"\x81"),
        "python storage": Persistent(("module", Name("torch.nn", "Linear"), "x.py", "source")),
        "storage of an unknown kind": tensor(storage=Persistent(("storage", Name("torch", "QInt8Storage"), "0", "cpu",
                                                                 4))),
        "set": Raw(_body(call("builtins:set", [1]), 2)),
        "bytearray": Raw(_body(call("builtins:bytearray", 10**12), 2)),
        "slice": call("builtins:slice", 1),
        "complex": call("builtins:complex", 1.0, 1.0),
    }  # fmt: skip
    found = {name: (value, False) for name, value in table.items()}
    parameter = "torch._utils:_rebuild_parameter"
    found["parameter of a payload"] = (call(parameter, system, False, hooks), True)
    found["state of a parameter"] = (call(f"{parameter}_with_state", tensor(), False, hooks, system), True)
    return found


def containers(place: Place) -> dict[str, tuple[bytes, bool, str]]:
    """Files around a payload: name -> the bytes, whether torch.load runs it, the ending."""
    evil = encode(call("os:system", place.shell))
    inner = archive(evil)
    good = archive(encode({"a": tensor()}))
    magic = encode(call("builtins:eval", f"__import__('os').system({place.shell!r}) or 0x1950a86a20f9469cfc6c"))
    found = {f"ending {name or 'none'}": (inner, True, name) for name in (".bin", ".pth", ".ckpt", ".pkl", ".PT", "")}
    found |= {f"legacy {part}": (legacy(**{part: evil}), True, ".pt")
              for part in ("magic", "protocol", "sys_info", "object", "keys")}  # fmt: skip
    found |= {f"legacy object in protocol {n}": (legacy(object=encode({"a": tensor(legacy=True), "x":
              call("os:system", place.shell)}, n)), True, ".bin") for n in range(1, 6)}  # fmt: skip
    found |= {f"plain pickle in protocol {n}": (encode(call("os:system", place.shell), n), True, ".pt")
              for n in range(6)}  # fmt: skip
    found |= {f"tar {part}": (tarred(**{part: evil}), True, ".pt") for part in ("pickle", "storages", "tensors")}
    found |= {
        "legacy after its magic number": (legacy() [:14] + evil, True, ".pt"),
        "legacy with a computed magic number": (legacy(magic=magic), True, ".pt"),
        "legacy in the place of a storage": (legacy(object=encode({"a": tensor(legacy=True,
                                             place=call("os:system", place.shell))})), True, ".pt"),
        "legacy with a module": (legacy(object=encode({"a": Persistent(("module", Name("os", "system"), "x", "y"))})),
                                 False, ".pt"),
        "legacy keys of calls": (legacy(keys=encode([call("os:system", place.shell)])), True, ".pt"),
        "plain .pkl": (evil, True, ".pkl"),
        "plain .bin": (evil, True, ".bin"),
        "plain .pth": (evil, True, ".pth"),
        "pickle before an archive": (evil + good, True, ".pt"),
        "archive behind another": (good + inner, False, ".pt"),
        "two programs": (archive(encode({"a": tensor()}), None, **{"../y/data.pkl": evil}), False, ".pt"),
        "program elsewhere": (zipped({"x/payload.pkl": evil, "x/version": b"3\n"}), False, ".pt"),
        "program at the top": (zipped({"data.pkl": evil, "version": b"3\n"}), False, ".pt"),
        "program two folders down": (zipped({"x/y/data.pkl": evil, "x/y/version": b"3\n"}), False, ".pt"),
        "program in capitals": (zipped({"x/DATA.PKL": evil, "x/version": b"3\n"}), False, ".pt"),
        "program twice": (_with_warning(lambda: archive(encode({"a": tensor()}), None, **{"data.pkl": evil})), False,
                          ".pt"),
        "program deflated": (zipped({"x/data.pkl": evil, "x/version": b"3\n"}, zipfile.ZIP_DEFLATED), True, ".pt"),
        "program in the place of the byte order": (zipped({"x/data.pkl": encode({"a": tensor()}), "x/byteorder": evil,
                                                           "x/data/0": FOUR, "x/version": b"3\n"}), False, ".pt"),
        "TorchScript": (archive(evil, None, **{"constants.pkl": evil, "code/__torch__.py": b"import os"}), False,
                        ".pt"),
        "exported program": (zipped({"archive_format": b"pt2", "models/model.json": b"{}", "data/weights/0": evil}),
                             False, ".pt2"),
        "torch package": (archive(evil, None, **{".data/python_version": b"3", "m.py": b"import os"}), True, ".pt"),
        "gzip": (gzip.compress(evil), False, ".pt"),
        "bzip2": (bz2.compress(evil), False, ".pt"),
        "xz": (lzma.compress(evil), False, ".pt"),
        "gzip of an archive": (gzip.compress(inner), False, ".bin"),
        "numpy file": ((place.planted / "evil.npy").read_bytes(), False, ".pt"),
        "numpy archive": (zipped({"a.npy": (place.planted / "evil.npy").read_bytes()}), False, ".pt"),
        "marshal": (marshal.dumps(compile(place.script, "x", "exec")), False, ".pt"),
        "compiled module": (importlib.util.MAGIC_NUMBER + b"\0" * 12 + marshal.dumps(compile(place.script, "x",
                                                                                             "exec")), False, ".pt"),
        "source": (place.script.encode(), False, ".pt"),
        "shell script": (b"#!/bin/sh\n" + place.shell.encode(), False, ".pt"),
        "library": (b"\x7fELF\x02\x01\x01" + b"\0" * 64, False, ".pt"),
        "keras": (b"\x89HDF\r\n\x1a\n" + evil, False, ".pt"),
        "gguf": (b"GGUF\x03\0\0\0" + evil, False, ".pt"),
        "safetensors before a pickle": (struct.pack("<Q", 2) + b"{}" + evil, False, ".pt"),
    }  # fmt: skip
    return found


def _with_warning(make: Callable[[], bytes]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def directories(place: Place) -> dict[str, dict[str, bytes]]:
    """Directories with exactly one malicious file, alone or beside good ones."""
    evil, good = archive(encode({"b": call("os:system", place.shell)})), archive(encode({"a": tensor()}))
    shards = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    return {
        "model": {"pytorch_model.bin": evil, "config.json": b"{}"},
        "adapter": {"adapter_model.bin": evil, "adapter_config.json": b"{}"},
        "second shard": {"pytorch_model.bin.index.json": index, shards[0]: good, shards[1]: evil},
        "checkpoint": {"checkpoint-5.pt": evil},
        "consolidated": {"consolidated.00.pth": evil, "params.json": b"{}"},
        "training arguments": {"training_args.bin": evil},
        "optimizer": {"optimizer.pt": evil},
        "random state": {"rng_state.pth": evil},
        "legacy": {"pytorch_model.bin": legacy(object=encode(call("os:system", place.shell)))},
    }


def either(place: Place) -> dict[str, bytes]:
    """Files with a payload where no reader looks: they may be read or refused, the payload may not run."""
    evil = encode(call("os:system", place.shell))
    inner = archive(evil)
    stored = Persistent(("storage", Name("torch", "ByteStorage"), "1", "cpu", len(inner)))
    holder = tensor(storage=stored, shape=(len(inner),))
    program = encode({"a": holder})
    return {
        "archive inside a storage": archive(program, {"1": inner}),
        "pickle inside a storage": archive(encode({"a": tensor()}), {"1": evil}),
        "archive before a good one": inner + archive(encode({"a": tensor()})),
        "member beside the program": archive(encode({"a": tensor()}), None, **{"extra.pkl": evil}),
        "program behind the end": archive(encode({"a": tensor()}) + evil),
        "pickle behind the archive": archive(encode({"a": tensor()})) + evil,
        "legacy, harmless": legacy(),
        "legacy, pickle behind the end": legacy() + evil,
    }


# ---------------------------------------------------------------------------------------------------------
# bombs

LIMIT = 64 * 2**20
COLLIDING = 2**61 - 1


def _fill(unit: bytes, size: int = LIMIT - 1024) -> bytes:
    return unit * (size // len(unit))


def _colliding(count: int) -> Iterator[bytes]:
    """Whole numbers whose hash is 0 in every Python of 64 bits."""
    for number in range(1, count + 1):
        data = (number * COLLIDING).to_bytes(11, "little", signed=True)
        yield b"\x8a\x0b" + data


def _expanded(size: int) -> bytes:
    return archive(encode({"a": tensor(shape=(size,), strides=(0,))}))


def _doubling(unit: bytes, times: int) -> bytes:
    """`unit` makes one value of the two on the stack; each step uses the step before twice."""
    return b"\x80\x02]" + b"".join(
        b"r" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + unit for n in range(times)
    ) + b"."  # fmt: skip


def _repeated_build(pairs: int, calls: int) -> bytes:
    """A list of pairs written once, and made a dictionary again and again."""
    items = b"".join(b"J" + struct.pack("<i", n) + b"N\x86" for n in range(pairs))
    head = b"\x80\x02ccollections\nOrderedDict\nq\x000](" + items + b"e\x85q\x010("
    return head + b"h\x00h\x01R" * calls + b"l."


def _many_views(count: int) -> bytes:
    """A call that describes a tensor of 60 dimensions, written once and made again and again."""
    storage = Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4))
    described = tensor(storage=storage, shape=(1,) * 60, strides=(1,) * 60)
    head = _body(described.callee, 2) + b"q\x000" + _body(described.arguments, 2) + b"q\x010"
    return b"\x80\x02" + head + b"(" + b"h\x00h\x01R" * count + b"l."


def _long_key(items: int, times: int) -> bytes:
    """A long tuple, written once and used as a key again and again."""
    return b"\x80\x02(" + b"K\x01" * items + b"tq\x00}" + b"h\x00Ns" * times + b"."


def _many_names(count: int) -> bytes:
    """One tensor under very many names."""
    body = _body(tensor(), 2)
    names = b"".join(b"U\x07%07dh\x00" % n for n in range(count))
    return b"\x80\x02" + body + b"q\x000}(" + names + b"u."


PICKLE_BOMBS: dict[str, Callable[[], bytes]] = {
    **{f"stride 0, 10^{n}": lambda n=n: _expanded(10**n) for n in (6, 9, 12, 15, 18)},
    "stride 0, 2^62 x 2^62": lambda: archive(encode({"a": tensor(shape=(2**62, 2**62), strides=(0, 0))})),
    "stride 0, 60 dimensions": lambda: archive(encode({"a": tensor(shape=(8,) * 60, strides=(0,) * 60)})),
    "stride 0, nothing stored": lambda: archive(encode({"a": tensor(shape=(10**12, 0), strides=(0, 0)),
                                                        "b": tensor(shape=(10**9,), strides=(0,))})),
    "10,000 windows of one storage": lambda: archive(
        encode({f"t{n}": tensor(storage=Persistent(("storage", Name("torch", "FloatStorage"), "1", "cpu", 10**5)),
                                shape=(9 * 10**4,), offset=n) for n in range(10_000)}), {"1": b"\0" * 4 * 10**5}),
    "doubled lists": lambda: archive(_doubling(b"\x86]q\xff0", 200)),
    "doubled tuples": lambda: archive(_doubling(b"\x86", 100_000)),
    "doubled tuple as a key": lambda: archive(b"\x80\x02}" + _doubling(b"\x86", 64)[2:-1] + b"Ns."),
    "doubled flat key": lambda: archive(b"\x80\x02}" + _doubling(b"\x86", 64)[2:-1].replace(b"]", b")") + b"Ns."),
    "doubled state": lambda: archive(_doubling(b"\x86", 100_000)[:-1] + b"}b."),
    "a dictionary built again and again": lambda: archive(_repeated_build(20_000, 50_000)),
    "a tensor made again and again": lambda: archive(_many_views(600_000)),
    "a long key used again and again": lambda: archive(_long_key(100_000, 100_000)),
    "64 MiB of lists": lambda: archive(b"\x80\x02(" + _fill(b"]") + b"l."),
    "64 MiB of dictionaries": lambda: archive(b"\x80\x02(" + _fill(b"}") + b"l."),
    "64 MiB of marks": lambda: archive(b"\x80\x02" + _fill(b"(") + b"N."),
    "64 MiB of nothing": lambda: archive(b"\x80\x02(" + _fill(b"N") + b"l."),
    "64 MiB of push and pop": lambda: archive(b"\x80\x02" + _fill(b"N0") + b"N."),
    "64 MiB of duplicates": lambda: archive(b"\x80\x02N" + _fill(b"2") + b"."),
    "64 MiB of protocol marks": lambda: archive(_fill(b"\x80\x02") + b"N."),
    "64 MiB of memo": lambda: archive(b"\x80\x04N" + _fill(b"\x94") + b"."),
    "64 MiB of memo in one place": lambda: archive(b"\x80\x02N" + _fill(b"q\x00") + b"."),
    "64 MiB of floats": lambda: archive(b"\x80\x02(" + _fill(b"G" + struct.pack(">d", 0.1)) + b"l."),
    "64 MiB of names": lambda: archive(b"\x80\x02(" + _fill(b"ctorch\nSize\n") + b"l."),
    "64 MiB of calls": lambda: archive(b"\x80\x02ctorch\nSize\nq\x00(" + _fill(b"h\x00)R") + b"l."),
    "64 MiB of persistent names": lambda: archive(
        b"\x80\x02" + _body(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4), 2) + b"q\x00("
        + _fill(b"h\x00Q") + b"l."),
    "4 million names of one tensor": lambda: archive(_many_names(4_000_000)),
    "65 MiB of program": lambda: archive(b"\x80\x02" + _fill(b"N0", LIMIT + 2**20) + b"N."),
    "LONG4 without its digits": lambda: archive(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01."),
    "LONG4 of 60 MB": lambda: archive(b"\x80\x02}\x8b" + struct.pack("<i", 60 * 10**6) + b"\x7f" * 60 * 10**6 + b"Ns."),
    "LONG4 as a size": lambda: archive(b"\x80\x02" + _body(
        {"a": tensor(storage=Persistent(("storage", Name("torch", "FloatStorage"), "0", "cpu",
                                         Raw(b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7))))}, 2) + b"."),
    "LONG of 60 MB of text": lambda: archive(b"L" + b"9" * 60 * 10**6 + b"L\n."),
    "INT of 60 MB of text": lambda: archive(b"I" + b"9" * 60 * 10**6 + b"\n."),
    "FLOAT of 60 MB of text": lambda: archive(b"F" + b"9" * 60 * 10**6 + b"\n."),
    "BINUNICODE8 without its text": lambda: archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"x."),
    "FRAME without its bytes": lambda: archive(b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N."),
    "BYTEARRAY8 of 60 MB": lambda: archive(b"\x80\x05\x96" + struct.pack("<Q", 60 * 10**6) + b"x" * 60 * 10**6 + b"."),
    "200,000 keys of one hash": lambda: archive(
        b"\x80\x02}(" + b"".join(key + b"N" for key in _colliding(200_000)) + b"u."),
    "200,000 tuple keys of one hash": lambda: archive(
        b"\x80\x02}(" + b"".join(key + b"\x85N" for key in _colliding(200_000)) + b"u."),
    "200,000 keys of one hash, one by one": lambda: archive(
        b"\x80\x02}" + b"".join(key + b"Ns" for key in _colliding(200_000)) + b"."),
    "200,000 memo places of one hash": lambda: archive(
        b"N" + b"".join(b"p%d\n" % (n * COLLIDING) for n in range(1, 200_001)) + b"."),
    "pairs of one hash": lambda: archive(b"\x80\x02ccollections\nOrderedDict\n](" + b"".join(
        key + b"N\x86" for key in _colliding(200_000)) + b"e\x85R."),
    "a million lists deep": lambda: archive(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
    "a million tuples deep": lambda: archive(b"\x80\x02)" + b"\x85" * 10**6 + b"."),
    "a million dictionaries deep": lambda: archive(b"\x80\x02" + b"}K\x01" * 10**6 + b"N" + b"s" * 10**6 + b"."),
    "a million marks deep": lambda: archive(b"\x80\x02" + b"(" * 10**6 + b"t" * 10**6 + b"."),
    "a million calls deep": lambda: archive(
        b"\x80\x02" + b"ccollections\nOrderedDict\n" * 10**5 + b")R" + b"\x85R" * (10**5 - 1) + b"."),
}  # fmt: skip


def _stored(count: int, data: bytes = FOUR) -> bytes:
    return legacy(storages=struct.pack("<q", count) + data)


LEGACY_BOMBS: dict[str, Callable[[], bytes]] = {
    "BINUNICODE8 of 2^62": lambda: legacy(object=b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."),
    "BINUNICODE8 of 2^63 - 1": lambda: legacy(object=b"\x80\x04\x8d" + struct.pack("<Q", 2**63 - 1) + b"x."),
    "BINBYTES8 of 2^40": lambda: legacy(object=b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x."),
    "BINUNICODE of 4 GB": lambda: legacy(object=b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x."),
    "BYTEARRAY8 of 2^62": lambda: legacy(object=b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x."),
    "LONG4 of 2 GB": lambda: legacy(object=b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x."),
    "LONG4 of 60 MB": lambda: legacy(keys=b"\x80\x02\x8b" + struct.pack("<i", 6 * 10**7) + b"\x7f" * 6 * 10**7 + b"."),
    "200 MB of one text": lambda: legacy(object=b"\x80\x02X" + struct.pack("<I", 2 * 10**8) + b"x" * 2 * 10**8 + b"."),
    "200 MB without a line break": lambda: legacy(object=b"\x80\x02S" + b"x" * 2 * 10**8),
    "a number of 200 MB": lambda: legacy(object=b"\x80\x02L" + b"9" * 2 * 10**8),
    "64 MiB of nothing": lambda: legacy(object=b"\x80\x02(" + _fill(b"N") + b"l."),
    "64 MiB of lists": lambda: legacy(object=b"\x80\x02(" + _fill(b"]") + b"l."),
    "64 MiB of keys": lambda: legacy(keys=b"\x80\x02](" + _fill(b"U\x010") + b"e."),
    "a million keys": lambda: legacy(keys=encode([str(n) for n in range(10**6)])),
    "keys of one hash": lambda: legacy(
        object=b"\x80\x02}(" + b"".join(key + b"N" for key in _colliding(200_000)) + b"u."),
    "one key twice": lambda: legacy(keys=encode(["0", "0"]), storages=(struct.pack("<q", 4) + FOUR) * 2),
    "key that nobody asked for": lambda: legacy(keys=encode(["0", "1"]), storages=(struct.pack("<q", 4) + FOUR) * 2),
    "key that is missing": lambda: legacy(keys=encode([]), storages=b""),
    "keys that are none": lambda: legacy(keys=encode(None)),
    "stride 0, 10^12": lambda: legacy(object=encode({"a": tensor(legacy=True, shape=(10**12,), strides=(0,))})),
    "storage of 2^61": lambda: _stored(2**61),
    "storage of 2^63 - 1": lambda: _stored(2**63 - 1),
    "storage of -1": lambda: _stored(-1),
    "storage of -2^63": lambda: _stored(-(2**63)),
    "storage of one more": lambda: _stored(5, FOUR + b"1234"),
    "storage of one less": lambda: _stored(3, FOUR[:12]),
    "storage that ends early": lambda: _stored(4, FOUR[:15]),
    "big-endian": lambda: legacy(sys_info=encode({"little_endian": False, "protocol_version": 1001, "type_sizes": {}})),
    "another version": lambda: legacy(protocol=encode(1002)),
    "view of a storage": lambda: legacy(object=encode({"a": tensor(storage=Persistent(
        ("storage", Name("torch", "FloatStorage"), "0", "cpu", 4, ("view", 2**62, 2**62))))})),
}  # fmt: skip


def _patched_directory(data: bytes, name: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    """An archive with the entry of one member in its central directory changed."""
    changed = bytearray(data)
    at = changed.rindex(name) - 46
    assert changed[at : at + 4] == b"PK\x01\x02"
    change(changed, at)
    return bytes(changed)


def _entry(at: int, form: str, *values: int) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, start: int) -> None:
        struct.pack_into(form, data, start + at, *values)

    return change


def _with_zip64(fields: bytes, *, sizes: bool = True, offset: bool = True) -> bytes:
    """An archive whose entry for the storage says that its numbers stand in a zip64 field with these bytes."""
    data = archive(encode({"a": tensor()}))
    end = data.rindex(b"PK\x05\x06")
    begin = data.index(b"PK\x01\x02")
    at = data.rindex(b"x/data/0") - 46
    entry = bytearray(data[at : at + 46 + 8])
    if sizes:
        struct.pack_into("<II", entry, 20, 2**32 - 1, 2**32 - 1)
    if offset:
        struct.pack_into("<I", entry, 42, 2**32 - 1)
    extra = struct.pack("<HH", 1, len(fields)) + fields
    struct.pack_into("<H", entry, 30, len(extra))
    directory = data[begin:at] + bytes(entry) + extra + data[at + 54 : end]
    tail = bytearray(data[end:])
    struct.pack_into("<II", tail, 12, len(directory), begin)
    return data[:begin] + directory + bytes(tail)


def _million_entries(count: int = 10**6, form: bytes = b"x/data/%07d") -> bytes:
    """A directory with very many names of members that all lie at the same place."""
    member = archive(encode({"a": tensor()}))
    begin = member.index(b"PK\x01\x02")
    entries = bytearray()
    for n in range(count):
        name = form % n if b"%" in form else form
        entries += struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0,
                               0, 0, 0) + name  # fmt: skip
    size, place = len(entries), begin
    big = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, place)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place + size, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return member[:begin] + bytes(entries) + big + locator + end


def _comment(data: bytes, comment: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", len(comment)) + comment


def _good() -> bytes:
    return archive(encode({"a": tensor()}), {"1": b"\0" * 64})


def _overlap() -> bytes:
    data = _good()
    at = data.rindex(b"x/data/0") - 46
    first = struct.unpack_from("<I", data, at + 42)[0]
    return _patched_directory(data, b"x/data/1", _entry(42, "<I", first))


ZIP_BOMBS: dict[str, Callable[[], bytes]] = {
    "deflated storage": lambda: _deflated(48 * 2**20),
    "deflated storage of 256 MiB": lambda: _deflated(2**28),
    "deflated program": lambda: zipped({"x/data.pkl": encode({"a": tensor()}), "x/data/0": FOUR, "x/version": b"3"},
                                       zipfile.ZIP_DEFLATED),
    "bzip2 program": lambda: zipped({"x/data.pkl": encode({}), "x/data/0": FOUR}, zipfile.ZIP_BZIP2),
    "xz program": lambda: zipped({"x/data.pkl": encode({}), "x/data/0": FOUR}, zipfile.ZIP_LZMA),
    "duplicate storage": lambda: _with_warning(lambda: archive(encode({"a": tensor()}), None, **{"data/0": FOUR})),
    "duplicate program": lambda: _with_warning(
        lambda: archive(encode({"a": tensor()}), None, **{"data.pkl": encode({"a": tensor()})})),
    "overlapping storages": _overlap,
    "storage over the program": lambda: _patched_directory(_good(), b"x/data/0", _entry(42, "<I", 0)),
    "storage over the directory": lambda: _patched_directory(
        _good(), b"x/data/1", lambda data, at: struct.pack_into("<II", data, at + 20, 10**6, 10**6)),
    "storage longer than the file": lambda: _patched_directory(_good(), b"x/data/0", _entry(20, "<II", 2**30, 2**30)),
    "storage of 4 GB": lambda: _patched_directory(_good(), b"x/data/0", _entry(20, "<II", 2**32 - 2, 2**32 - 2)),
    "encrypted storage": lambda: _patched_directory(_good(), b"x/data/0", _entry(8, "<H", 1)),
    "unknown method": lambda: _patched_directory(_good(), b"x/data/0", _entry(10, "<H", 99)),
    "on another disk": lambda: _patched_directory(_good(), b"x/data/0", _entry(42, "<I", 2**31)),
    "wrong CRC": lambda: _patched_directory(_good(), b"x/data/0", _entry(16, "<I", 1)),
    "names leave": lambda: archive(encode({"a": tensor()}), None, **{"../../../../tmp/evil": b"x"}),
    "absolute name": lambda: zipped({"/x/data.pkl": encode({"a": tensor()}), "/x/data/0": FOUR}),
    "name with a drive": lambda: zipped({"C:\\x/data.pkl": encode({"a": tensor()}), "C:\\x/data/0": FOUR}),
    "zip64 size of 2^63": lambda: _with_zip64(struct.pack("<QQ", 2**63, 2**63), offset=False),
    "zip64 size of 2^64 - 1": lambda: _with_zip64(struct.pack("<QQ", 2**64 - 1, 2**64 - 1), offset=False),
    "zip64 size of 1 TB": lambda: _with_zip64(struct.pack("<QQ", 10**12, 10**12), offset=False),
    "zip64 offset of 2^63": lambda: _with_zip64(struct.pack("<Q", 2**63), sizes=False),
    "zip64 offset of 2^64 - 1": lambda: _with_zip64(struct.pack("<Q", 2**64 - 1), sizes=False),
    "zip64 field too short": lambda: _with_zip64(b"\1\2\3"),
    "zip64 field missing": lambda: _with_zip64(b""),
    "zip64 end that lies": lambda: _zip64_end(2**40),
    "zip64 end without entries": lambda: _zip64_end(0, entries=2**63),
    "zip64 end in nowhere": lambda: _zip64_end(0, locator=2**63),
    "comment with an archive in it": lambda: _comment(_good(), _good()[:60_000]),
    "comment with an end in it": lambda: _comment(_good(), b"x" * 40 + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9,
                                                                                    9, 10**6, 0, 0)),
    "comment longer than the file": lambda: _good()[:-2] + struct.pack("<H", 65535) + b"x" * 10,
    "directory of a million entries": _million_entries,
    "directory of 330,000 short names": lambda: _million_entries(330_000, b"%x"),
    "directory of 330,000 equal names": lambda: _million_entries(330_000, b"x"),
    "directory of 65,535 entries that are not there": lambda: _patch_end(_good(), 8, "<HH", 65535, 65535),
    "directory of 4 GB": lambda: _patch_end(_good(), 12, "<I", 2**32 - 2),
    "directory before the file": lambda: _patch_end(_good(), 16, "<I", 2**32 - 2),
    "only an end": lambda: b"PK\x05\x06" + b"\0" * 18,
    "a start and an end": lambda: b"PK\x03\x04" + b"\0" * 26 + b"PK\x05\x06" + b"\0" * 18,
}  # fmt: skip


def _deflated(size: int) -> bytes:
    buffer = io.BytesIO()
    program = encode({"a": tensor(storage=Persistent(("storage", Name("torch", "ByteStorage"), "1", "cpu", size)),
                                  shape=(size,))})  # fmt: skip
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x/data.pkl", program, zipfile.ZIP_STORED)
        with out.open("x/data/1", "w") as file:
            for _ in range(size // 2**22):
                file.write(b"\0" * 2**22)
    return buffer.getvalue()


def _patch_end(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, changed.rindex(b"PK\x05\x06") + at, *values)
    return bytes(changed)


def _zip64_end(size: int, *, entries: int = 5, locator: int | None = None) -> bytes:
    data = _good()
    end = data.rindex(b"PK\x05\x06")
    begin = data.index(b"PK\x01\x02")
    big = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, size, begin)
    where = struct.pack("<4sLQL", b"PK\x06\x07", 0, end if locator is None else locator, 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:end] + big + where + last


def flips(data: bytes, ranges: list[tuple[int, int]], count: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Seeded places of single bits inside byte ranges: (byte, bit)."""
    source = random.Random(seed)
    places = [byte for begin, size in ranges for byte in range(begin, begin + size)]
    for byte in source.sample(places, count):
        yield byte, source.randrange(8)


# ---------------------------------------------------------------------------------------------------------
# safetensors


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A valid safetensors file of float32 tensors, all ones."""
    entries, begin = {}, 0
    for name, shape in shapes.items():
        end = begin + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    return framed(json.dumps(entries).encode(), struct.pack("<f", 1) * (begin // 4))


def _entry_of(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> bytes:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}).encode()


def _one(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), data: bytes = b"1234", **more: Any) -> bytes:
    return framed(b'{"a":' + _entry_of(dtype, shape, offsets, **more) + b"}", data)


def malformed() -> dict[str, bytes]:
    """safetensors files that no reader may accept."""
    entry, big = _entry_of(), 2**66
    return {
        "empty": b"",
        "seven bytes": b"\x02\0\0\0\0\0\0",
        "only a length": struct.pack("<Q", 0),
        "header of nothing": framed(b"", b"1234"),
        "header longer than the file": framed(b"{}", length=100),
        "header of 100 MB and a byte": framed(b"{}", length=100 * 10**6 + 1),
        "header of 2^63": framed(b"{}", length=2**63),
        "header of 2^64 - 1": framed(b"{}", length=2**64 - 1),
        "header shorter than its JSON": framed(b'{"a":' + entry + b"}", b"1234", length=20),
        "header with its length backwards": struct.pack(">Q", 2) + b"{}",
        "bad UTF-8": framed(b'{"\xff":' + entry + b"}", b"1234"),
        "UTF-16": framed('{"a": 1}'.encode("utf-16")),
        "byte order mark": framed(b"\xef\xbb\xbf{}"),
        "no JSON": framed(b"{nope}"),
        "JSON with a comma too many": framed(b'{"a":' + entry + b",}", b"1234"),
        "JSON and more": framed(b"{}{}"),
        "JSON and zeros": framed(b"{}\0\0"),
        "blanks first": framed(b"  {}"),
        "a list": framed(b"[]"),
        "a number": framed(b"1"),
        "null": framed(b"null"),
        "deep dictionaries": framed(b'{"a":' * 100_000),
        "deep lists": framed(b'{"a":' + b"[" * 100_000),
        "two tensors of one name": framed(b'{"a":' + entry + b',"a":' + entry.replace(b"F32", b"I32") + b"}", b"1234"),
        "two equal tensors of one name": framed(b'{"a":' + entry + b',"a":' + entry + b"}", b"1234"),
        "one name spelled in two ways": framed(b'{"a":' + entry + b',"\\u0061":' + entry + b"}", b"1234"),
        "two dtypes": framed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        "two shapes": framed(b'{"a":{"dtype":"F32","shape":[1],"shape":[1,1],"data_offsets":[0,4]}}', b"1234"),
        "metadata twice": framed(b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}'),
        "one key of metadata twice": framed(b'{"__metadata__":{"a":"b","a":"c"}}'),
        "metadata of numbers": framed(b'{"__metadata__":{"a":1}}'),
        "metadata in metadata": framed(b'{"__metadata__":{"a":{"b":"c"}}}'),
        "metadata that is null": framed(b'{"__metadata__":null}'),
        "metadata that is a tensor": framed(b'{"__metadata__":' + entry + b"}", b"1234"),
        "entry is null": framed(b'{"a":null}'),
        "entry is a list": framed(b'{"a":["F32",[1],[0,4]]}', b"1234"),
        "no dtype": framed(b'{"a":{"shape":[1],"data_offsets":[0,4]}}', b"1234"),
        "no shape": framed(b'{"a":{"dtype":"F32","data_offsets":[0,4]}}', b"1234"),
        "no offsets": framed(b'{"a":{"dtype":"F32","shape":[1]}}', b"1234"),
        "an unknown field": _one(extra=1),
        "unknown dtype": _one("F31"),
        "dtype in small letters": _one("f32"),
        "dtype of torch": _one("torch.float32"),
        "dtype of half a byte": _one("F4", (8,)),
        "dtype is a number": _one(32),
        "dtype is null": _one(None),
        "dtype with an escape": _one("F32\x1b[2J"),
        "negative length": _one(shape=(-1,)),
        "two negative lengths": _one(shape=(-1, -1)),
        "length is a float": _one(shape=(1.0,)),
        "length is true": _one(shape=(True,)),
        "length is text": _one(shape=("1",)),
        "length is null": _one(shape=(None,)),
        "shape is a number": _one(shape=1),
        "shape is text": _one(shape="1"),
        "length of 2^66": _one(shape=(big,)),
        "lengths of 2^66 and 0": _one(shape=(big, 0), offsets=(0, 0), data=b""),
        "lengths whose product wraps to 0": _one(shape=(2**32, 2**32), offsets=(0, 0), data=b""),
        "lengths whose product wraps to 1": _one(shape=(2**32 + 1, 2**32 - 1), offsets=(0, 4)),
        "lengths whose product wraps to 4": _one(shape=(2**62 + 1,), offsets=(0, 4)),
        "a million lengths": _one(shape=(1,) * 10**6),
        "a shape that is too large": _one(shape=(2,)),
        "a shape that is too small": _one(shape=(1,), offsets=(0, 8), data=b"12345678"),
        "offsets backwards": _one(offsets=(4, 0)),
        "negative offsets": _one(offsets=(-4, 0)),
        "offsets beyond the file": _one(offsets=(0, 4), data=b"12"),
        "offsets of 2^64": _one(offsets=(2**64, 2**64 + 4)),
        "offsets are floats": _one(offsets=(0.0, 4.0)),
        "offsets are true": _one("U8", offsets=(False, True), data=b"1"),
        "offsets are text": _one(offsets=("0", "4")),
        "one offset": _one(offsets=(4,)),
        "three offsets": _one(offsets=(0, 2, 4)),
        "offsets are infinite": framed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', b"1234"),
        "offsets are no numbers": framed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"),
        "6,000 digits": framed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 6000 + b'],"data_offsets":[0,4]}}', b"1234"),
        "a hole before": _one(offsets=(4, 8), data=b"12345678"),
        "a hole between": framed(b'{"a":' + entry + b',"b":' + _entry_of(offsets=(8, 12)) + b"}", b"123456789012"),
        "bytes behind": _one(data=b"12345678"),
        "one byte behind": _one(data=b"12345"),
        "overlap": framed(b'{"a":' + entry + b',"b":' + _entry_of(offsets=(2, 6)) + b"}", b"123456"),
        "the same bytes twice": framed(b'{"a":' + entry + b',"b":' + entry + b"}", b"1234"),
        "no tensors but bytes": framed(b"{}", b"1234"),
        "a PyTorch archive": archive(encode({"a": tensor()})),
        "a pickle": encode(call("os:system", "true")),
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "text": b"hello, this is no model" * 10,
    }


HEADER_LIMIT = 16 * 2**20


def header_bombs() -> dict[str, bytes]:
    """Headers that want to be large in memory: some over the limit of 16 MiB, the others just below."""
    nothing = b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    names = b",".join(b'"%07d' % n + nothing for n in range(300_000))
    room = HEADER_LIMIT - 64
    return {
        "300,000 names": framed(b"{" + names + b"}"),
        "17 MB of blanks": framed(b"{}" + b" " * 17 * 10**6),
        "lists": framed(b'{"a":[' + _fill(b"[],", room) + b"[]]}"),
        "dictionaries": framed(b'{"a":[' + _fill(b"{},", room) + b"{}]}"),
        "numbers": framed(b'{"a":[' + _fill(b"300,", room) + b"1]}"),
        "floats": framed(b'{"a":[' + _fill(b"1e9,", room) + b"1]}"),
        "texts": framed(b'{"a":[' + _fill(b'"ab",', room) + b'"a"]}'),
        "wide texts": framed(b'{"a":[' + _fill('"\U0001f642\U0001f642",'.encode(), room) + b'"a"]}'),
        "one text": framed(b'{"' + b"a" * room + b'":1}'),
        "one number": framed(b'{"a":' + b"9" * room + b"}"),
        "one shape": framed(b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[' + _fill(b"1,", room) + b"1]}}",
                            b"1234"),
        "one large shape": framed(b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":['
                                  + _fill(b"9223372036854775807,", room) + b"1]}}", b"1234"),
        "keys": framed(b'{"a":{' + b",".join(b'"%06d":1' % n for n in range(room // 11)) + b"}}"),
        "keys twice": framed(b'{"a":{' + _fill(b'"b":1,', room) + b'"b":1}}'),
        "metadata": framed(b'{"__metadata__":{' + b",".join(b'"%06d":1' % n for n in range(room // 11)) + b"}}"),
        "depth": framed(b'{"a":' + b"[" * room),
        "depth of names": framed(b'{"a":' * (room // 5)),
        "escapes": framed(b'{"' + _fill(b"\\u0041", room) + b'":1}'),
    }  # fmt: skip


def index_bombs(ending: str) -> dict[str, bytes]:
    """Indexes that want to be large in memory, with names of the right ending."""
    room = LIMIT - 64
    many = {f"t{n}": f"m-{n}{ending}" for n in range(400_000)}
    return {
        "65 MiB of blanks": b"{" + b" " * 65 * 2**20 + b"}",
        "lists": b'{"weight_map":[' + _fill(b"[],", room) + b"[]]}",
        "dictionaries": b'{"weight_map":{"a":[' + _fill(b"{},", room) + b"{}]}}",
        "texts": b'{"weight_map":{"a":[' + _fill(b'"ab",', room) + b'"a"]}}',
        "metadata": b'{"metadata":{"a":[' + _fill(b"[],", room) + b'[]]},"weight_map":{"a":"x' + ending.encode()
                    + b'"}}',
        "keys": b'{"weight_map":{' + b",".join(b'"%07d":1' % n for n in range(room // 12)) + b"}}",
        "400,000 files": json.dumps({"weight_map": many}).encode(),
        "depth": b'{"weight_map":' + b"[" * room,
        "one number": b'{"weight_map":' + b"9" * room + b"}",
        "one text": b'{"weight_map":{"a":"' + b"a" * room + b'"}}',
    }  # fmt: skip


def index_names(ending: str, outside: Path) -> dict[str, Any]:
    """What an index may not name; `outside` holds files of that ending with the tensor that is asked for.

    `linked`, `pipe` and the like have been planted in the model's directory.
    """
    good = f"x{ending}"
    return {
        "parent": f"../outside/{good}",
        "parent twice": f"../../{outside.parent.name}/outside/{good}",
        "parent behind a folder": f"sub/../../outside/{good}",
        "parent behind the file": f"{good}/../../outside/{good}",
        "here": f"./{good}",
        "a folder": f"sub/{good}",
        "absolute": str(outside / good),
        "absolute twice": f"/{outside / good}",
        "absolute without the ending": "/etc/passwd",
        "endless device": "/dev/zero",
        "null device": "/dev/null",
        "own environment": "/proc/self/environ",
        "own files": f"/proc/self/cwd/../outside/{good}",
        "drive": f"C:\\{good}",
        "drive without a root": f"C:{good}",
        "backslash": f"..\\outside\\{good}",
        "share": f"\\\\server\\share\\{good}",
        "stream": f"{good}:hidden",
        "web address": f"http://127.0.0.1:9/{good}",
        "file address": f"file://{outside / good}",
        "home": f"~/{good}",
        "variable": f"$HOME/{good}",
        "command": f"$(touch canary){ending}",
        "percent": f"%2e%2e%2foutside%2f{good}",
        "fullwidth slash": f"..／outside／{good}",
        "fullwidth dots": f"．．/outside/{good}",
        "division slash": f"..∕outside∕{good}",
        "one dot leader": f"\u2024\u2024/outside/{good}",
        "reversed text": f"x\u202e{ending}",
        "zero width": f"x\u200b{ending}",
        "lone surrogate": f"x\ud800{ending}",
        "NUL": f"{good}\0",
        "NUL and an ending": f"/etc/passwd\0{ending}",
        "line break": f"{good}\n",
        "escape": f"\x1b[2J{ending}",
        "blank behind": f"{good} ",
        "dot behind": f"{good}.",
        "other case": f"X{ending.upper()}",
        "option": f"-rf{ending}",
        "no ending": "x",
        "other ending": "x.txt",
        "the other format": "x.bin" if ending != ".bin" else "x.safetensors",
        "hidden file of that name": ending,
        "empty": "",
        "dot": ".",
        "two dots": "..",
        "300 characters": "x" * 300 + ending,
        "100,000 characters": "x" * 100_000 + ending,
        "100,000 folders": "x/" * 50_000 + good,
        "number": 3,
        "negative number": -1,
        "true": True,
        "null": None,
        "list": [good],
        "dictionary": {good: good},
        "missing": f"missing{ending}",
        "link out": f"linked{ending}",
        "absolute link out": f"absolute{ending}",
        "link to a link out": f"chained{ending}",
        "link to a device": f"device{ending}",
        "link to itself": f"loop{ending}",
        "folder of that name": f"folder{ending}",
        "pipe of that name": f"pipe{ending}",
        "the index itself": "model.safetensors.index.json" if ending != ".bin" else "pytorch_model.bin.index.json",
    }


def plant_index_targets(model: Path, outside: Path, ending: str, good: bytes) -> None:
    """What the names of `index_names` lead to: valid files outside, and links, pipes and folders inside."""
    outside.mkdir(exist_ok=True)
    (outside / f"x{ending}").write_bytes(good)
    (model / "sub").mkdir()
    (model / "sub" / f"x{ending}").write_bytes(good)
    (model / f"linked{ending}").symlink_to(f"../outside/x{ending}")
    (model / f"absolute{ending}").symlink_to(outside / f"x{ending}")
    (model / f"chained{ending}").symlink_to(f"linked{ending}")
    (model / f"device{ending}").symlink_to("/dev/zero")
    (model / f"loop{ending}").symlink_to(f"loop{ending}")
    (model / f"folder{ending}").mkdir()
    os.mkfifo(model / f"pipe{ending}")


LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10, "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 4, "hidden_act": "silu", "max_position_embeddings": 8, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_TENSORS: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (10, 8),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 10, "n_embd": 8, "n_layer": 1,
    "n_head": 2, "n_positions": 8, "tie_word_embeddings": True,
}  # fmt: skip
GPT2_TENSORS: dict[str, tuple[int, ...]] = {
    "transformer.wte.weight": (10, 8),
    "transformer.wpe.weight": (8, 8),
    **{f"transformer.h.0.ln_{n}.{part}": (8,) for n in "12" for part in ("weight", "bias")},
    "transformer.h.0.attn.c_attn.weight": (8, 24),
    "transformer.h.0.attn.c_attn.bias": (24,),
    "transformer.h.0.attn.c_proj.weight": (8, 8),
    "transformer.h.0.attn.c_proj.bias": (8,),
    "transformer.h.0.mlp.c_fc.weight": (8, 32),
    "transformer.h.0.mlp.c_fc.bias": (32,),
    "transformer.h.0.mlp.c_proj.weight": (32, 8),
    "transformer.h.0.mlp.c_proj.bias": (8,),
    "transformer.ln_f.weight": (8,),
    "transformer.ln_f.bias": (8,),
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llama": (LLAMA, LLAMA_TENSORS),
    "gpt2": (GPT2, GPT2_TENSORS),
}
"""A model that llmt reads itself, and one that it reads through transformers: config.json, and the tensors."""


def write_model(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> Path:
    """A model directory with one weight file."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors(tensors))
    return directory


_CODE = "kernels-community/evil-attention"
FORBIDDEN_SETTINGS: dict[str, dict[str, Any]] = {
    "auto_map": {"auto_map": {"AutoConfig": "evil_code.Config", "AutoModelForCausalLM": "evil_code.Model"}},
    "auto_map of another repository": {"auto_map": {"AutoModelForCausalLM": "evil/repo--evil_code.Model"}},
    "empty auto_map": {"auto_map": {}},
    "trust_remote_code": {"trust_remote_code": True},
    "trust_remote_code and auto_map": {"trust_remote_code": True, "auto_map": {"AutoConfig": "evil_code.Config"}},
    "custom_generate": {"custom_generate": "evil/repo"},
    "_attn_implementation_internal": {"_attn_implementation_internal": _CODE},
    "_attn_implementation": {"_attn_implementation": _CODE},
    "_attn_implementation of a revision": {"_attn_implementation": f"{_CODE}@main:forward"},
    "_attn_implementation with a wrapper": {"_attn_implementation": f"flash|{_CODE}"},
    "attn_implementation": {"attn_implementation": _CODE},
    "attn_implementation by part": {"attn_implementation": {"": _CODE}},
    "_experts_implementation": {"_experts_implementation": _CODE},
    "nested _attn_implementation": {"text_config": {"_attn_implementation_internal": _CODE}},
    "nested auto_map": {"text_config": {"auto_map": {"AutoModel": "evil_code.Model"}}},
    "quantization by modules": {"quantization_config": {"quant_method": "torchao", "modules": ["evil_code"]}},
    "quantization of an unknown kind": {"quantization_config": {"quant_method": "evil"}},
    "quantization of no kind": {"quantization_config": {"bits": 4}},
    "quantization by bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "quantization by gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4, "dataset": "evil/data"}},
    "quantization by awq": {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["x"]}},
    "quantization by torchao": {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {
        "_type": "evil_code.Model", "_data": {}}}}},
    "quantization that is text": {"quantization_config": "evil"},
}  # fmt: skip
"""Settings that would have a loader run or fetch code."""

ODD_SETTINGS: dict[str, dict[str, Any]] = {
    "weights elsewhere": {"transformers_weights": "../outside/x.safetensors"},
    "weights of an adapter": {"transformers_weights": "../outside/adapter_model.safetensors"},
    "dtype with a path": {"dtype": "serialization.os"},
    "torch_dtype with a path": {"torch_dtype": "os.system"},
    "another architecture": {"architectures": ["../outside/evil"]},
    "a name with an address": {"_name_or_path": "http://127.0.0.1:9/x"},
    "use of kernels": {"use_kernels": True},
    "tokenizer class": {"tokenizer_class": "os.system"},
    "custom pipelines": {"custom_pipelines": {"x": {"impl": "evil_code.Model"}}},
    "activation": {"hidden_act": "os.system", "activation_function": "os.system"},
    "tensor parallel plan": {"base_model_tp_plan": {"x": "evil_code.Model"}},
}
"""Settings that may be passed over or refused, and lead nowhere."""

LARGE_SETTINGS: dict[str, dict[str, Any]] = {
    "ten million layers": {"num_hidden_layers": 10**7, "n_layer": 10**7},
    "a width of 10^15": {"hidden_size": 10**15, "head_dim": 5 * 10**14, "n_embd": 10**15},
    "a vocabulary of 10^15": {"vocab_size": 10**15},
    "a context of 10^15": {"max_position_embeddings": 10**15, "n_positions": 10**15},
    "a feed-forward size of 10^15": {"intermediate_size": 10**15, "n_inner": 10**15},
    "10^9 heads": {"num_attention_heads": 10**9, "n_head": 10**9},
    "no heads": {"num_attention_heads": 0, "n_head": 0},
    "negative sizes": {"hidden_size": -8, "n_embd": -8, "head_dim": -4},
    "sizes that are text": {"hidden_size": "8", "n_embd": "8"},
    "sizes that are lists": {"hidden_size": [8], "n_embd": [8], "num_hidden_layers": [1], "n_layer": [1]},
    "sizes that are null": {"hidden_size": None, "n_embd": None, "vocab_size": None},
    "a rope that is text": {"rope_parameters": "default", "rope_scaling": "default"},
}
"""Sizes that the weights do not have; only the context may be what it likes."""


def hostile_names() -> Iterator[str]:
    """Names of tensors that would move the cursor, set the clipboard, ring, turn the text or break a table."""
    yield from (
        "\x1b[2J",
        "\x1b]52;c;ZXZpbA==\x07",
        "\x1b]0;title\x07",
        "\x1b[31mred",
        "\x1bc",
        "\x9b2J",
        "\x9d0;x\x9c",
    )
    yield from ("\x07", "\x08" * 40, "\x7f", "a\rb", "a\nb", "a\n\nerror: x", "a\tb", "\x0b", "\x0c", "\0", "a\0b")
    yield from ("\u202egnp.exe", "\u2066x", "\u200e", "\u061c", "\u2028", "\u2029", "\ufeff", "\u200b", "\ud800")
    yield from ("[red]x[/red]", "[/INST]", "[/v1]", "[link=http://x]y[/link]", "[bold", "[", "]", ":smile:", "%s%n")
    yield from ("../../x", "..\\x", "/etc/passwd", "C:\\x", "~", "$(touch x)", "`touch x`", "; touch x", "-rf", "--x")
    yield from ("{0.__class__}", "{{7*7}}", "__metadata__", "", " ", "a" * 100_000, "🙂", "ａ", "é", "e\u0301")


# ---------------------------------------------------------------------------------------------------------
# the process that reads


def one_line(text: str) -> bool:
    """Whether a message can stand in a terminal: one printable line."""
    return text.isprintable() and len(text) < 2000


def unsafe(shown: str) -> set[str]:
    """What in a text would move the cursor, ring, turn the reading direction or is no character at all."""
    turning = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c"}
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return {char for char in shown if char not in "\n\t" and (unicodedata.category(char) in kinds or char in turning)}


def without_forbidding(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nothing forbids the network, and no compiled modules are written."""
    kept = {name: value for name, value in environment.items() if name != "HF_HUB_OFFLINE"}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}


@dataclass
class Job:
    """One thing to do in the reading process: `call` one of ACTIONS with `arguments`.

    `fork`: in a process of its own, with a limit of time and memory. `watch`: a folder of which every file that
    is opened is reported, whoever opens it.
    """

    name: str
    call: str
    arguments: list[str] = field(default_factory=list)
    fork: bool = False
    watch: str = ""
    root: str = ""


def run_jobs(
    jobs: list[Job], scratch: Path, environment: Mapping[str, str], preload: tuple[str, ...] = (), timeout: float = 300
) -> dict[str, dict[str, Any]]:
    """Do all jobs in one new process; what happened, by name. A job that is missing ended the process."""
    scratch.mkdir(parents=True, exist_ok=True)
    asked, told = scratch / "jobs.json", scratch / "results.jsonl"
    asked.write_text(json.dumps({"preload": preload, "jobs": [vars(job) for job in jobs]}))
    done = subprocess.run(
        [sys.executable, __file__, str(asked), str(told)],
        cwd=scratch, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
    )  # fmt: skip
    results = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    found = {result["name"]: result for result in results}
    missing = [job.name for job in jobs if job.name not in found]
    assert not missing, f"the process ended with {done.returncode} in {missing[0]!r}: {done.stderr.decode()[-2000:]}"
    return found


def on_a_terminal(
    jobs: list[Job], scratch: Path, environment: Mapping[str, str]
) -> tuple[dict[str, dict[str, object]], bytes]:
    """Do the jobs with standard output and error on a terminal; what happened, and every byte that it got."""
    import pty
    import threading

    scratch.mkdir()
    (scratch / "jobs.json").write_text(json.dumps({"preload": ["llmt.cli.app"], "jobs": [vars(job) for job in jobs]}))
    controller, terminal = pty.openpty()
    received: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(controller, 2**16):
                received.append(data)

    thread = threading.Thread(target=listen)
    thread.start()
    process = subprocess.Popen(
        [sys.executable, __file__, "jobs.json", "results.jsonl"],
        cwd=scratch, env={**environment, "TERM": "dumb", "PYTHONUTF8": "1"}, stdin=subprocess.DEVNULL,
        stdout=terminal, stderr=terminal,
    )  # fmt: skip
    process.wait(120)
    os.close(terminal)
    thread.join(10)
    os.close(controller)
    lines = (scratch / "results.jsonl").read_text().splitlines()
    assert len(lines) == len(jobs), b"".join(received)[-3000:]
    return {result["name"]: result for result in map(json.loads, lines)}, b"".join(received)


HANG = 20
"""Seconds after which a job is ended."""

FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class", "subprocess.Popen", "pty.spawn",
    "code.__new__", "builtins.input", "webbrowser.open", "ctypes.dlopen", "socket.connect", "socket.bind",
    "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "ftplib.connect",
)  # fmt: skip
"""Audit events that reading a file never causes."""

_opened: list[str] = []
_events: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))
    elif event in FORBIDDEN:
        _events.append(event)


def _convert(source: str, output: str = "") -> None:
    from llmt.checkpoints.convert import convert_to_safetensors

    for _ in convert_to_safetensors(Path(source), Path(output) if output else None):
        pass


def _convert_with_umask(mask: str, source: str, output: str, size: str) -> None:
    from llmt.checkpoints.convert import convert_to_safetensors

    os.umask(int(mask, 8))
    for _ in convert_to_safetensors(Path(source), Path(output), max_shard_size=int(size), overwrite=True):
        pass


def _load_weights(source: str) -> None:
    from llmt.checkpoints.weights import load_weights

    load_weights(Path(source))


def _read_header(source: str) -> None:
    from llmt.checkpoints.header import read_header

    read_header(Path(source))


def _load_model(source: str) -> None:
    from llmt.models.load import load_model

    load_model(Path(source))


def _torch_load(source: str, root: str, *, weights_only: bool | None = False, patience: float = 3) -> None:
    import atexit

    import torch

    place = Place(Path(root))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        torch.load(source, weights_only=weights_only)
    finally:
        atexit._run_exitfuncs()
        end = time.monotonic() + patience
        while not place.happened() and time.monotonic() < end:
            time.sleep(0.01)


def _command(*arguments: str) -> None:
    from llmt.cli.app import run

    sys.exit(run(list(arguments)))


ACTIONS: dict[str, Callable[..., None]] = {
    "convert": _convert,
    "convert_with_umask": _convert_with_umask,
    "load_weights": _load_weights,
    "read_header": _read_header,
    "load_model": _load_model,
    "torch_load": _torch_load,
    "torch_load_default": lambda source, root: _torch_load(source, root, weights_only=None, patience=0.5),
    "command": _command,
}


def _memory(field_name: str) -> int:
    """Bytes, from /proc/self/status; 0 where there is none."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else f"{field_name}: 0"
    return int(text.partition(f"{field_name}:")[2].split()[0]) * 1024


def _perform(job: dict[str, Any]) -> dict[str, Any]:
    from llmt.errors import LlmtError

    watcher = _Watcher(job["watch"]) if job["watch"] else None
    before, start = _memory("VmHWM"), time.process_time()
    _opened.clear()
    _events.clear()
    code: int | str = 0
    message = hint = ""
    try:
        ACTIONS[job["call"]](*job["arguments"])
    except LlmtError as error:
        code, message, hint = error.exit_code, error.message, error.hint
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - whatever else comes out of a reader is what is looked for
        code, message = type(error).__name__, str(error)[:300]
    peak, seconds = _memory("VmHWM"), time.process_time() - start
    opened, events = sorted(set(_opened)), sorted(set(_events))
    watched = watcher.opened() if watcher else []
    return {
        "name": job["name"], "code": code, "message": message, "hint": hint, "cpu": round(seconds, 3), "peak": peak,
        "grown": peak - before, "opened": opened, "events": events, "watched": watched,
    }  # fmt: skip


class _Watcher:
    """Which files of a folder anybody opens, native code included (inotify)."""

    def __init__(self, folder: str) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK)
        watched = libc.inotify_add_watch(self.descriptor, os.fsencode(folder), 0x20)  # IN_OPEN
        assert self.descriptor >= 0, "no inotify"
        assert watched >= 0, f"cannot watch {folder}"

    def opened(self) -> list[str]:
        """The names since the beginning; of the folder itself, an empty one."""
        try:
            data = os.read(self.descriptor, 2**20)
        except BlockingIOError:
            data = b""
        os.close(self.descriptor)
        names, at = set(), 0
        while at < len(data):
            length = struct.unpack_from("<I", data, at + 12)[0]
            names.add(data[at + 16 : at + 16 + length].rstrip(b"\0").decode())
            at += 16 + length
        return sorted(names)


def _perform_apart(job: dict[str, Any]) -> dict[str, Any]:
    import resource

    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(HANG)
        resource.setrlimit(resource.RLIMIT_CPU, (HANG, HANG))
        room = _memory("VmSize") + 4 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        os.close(reader)
        result = json.dumps(_perform(job)).encode()
        while result:
            result = result[os.write(writer, result) :]
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if data:
        result_of: dict[str, Any] = json.loads(data)
        return result_of
    ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    return {
        "name": job["name"], "code": ended, "message": "", "hint": "", "cpu": HANG, "peak": 0, "grown": 0,
        "opened": [], "events": [], "watched": [],
    }  # fmt: skip


def _main(asked: str, told: str) -> None:
    content = json.loads(Path(asked).read_text())
    for module in ("llmt.checkpoints.convert", "llmt.errors", *content["preload"]):
        importlib.import_module(module)
    sys.addaudithook(_audit)
    with Path(told).open("w") as out:
        for job in content["jobs"]:
            if job["root"]:
                Place(Path(job["root"])).restore()
            result = _perform_apart(job) if job["fork"] else _perform(job)
            if job["root"]:
                result["happened"] = Place(Path(job["root"])).happened()
            print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    # When it is a module of pytest, `Place` and the like come from there; here they are `__main__`'s.
    _main(*sys.argv[1:])

"""The names that a file of `torch.save` may import, and what stands for each: never the thing itself."""

from dataclasses import dataclass

from llmt.checkpoints.dtypes import DTYPE_BYTES
from llmt.checkpoints.pickle_values import Build, Global, Opaque, PickleRefusedError, build_dictionary

MAX_DIMENSIONS = 64

_DTYPES = {
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.uint16": "U16",
    "torch.int16": "I16",
    "torch.uint32": "U32",
    "torch.int32": "I32",
    "torch.uint64": "U64",
    "torch.int64": "I64",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float32": "F32",
    "torch.float64": "F64",
    "torch.complex64": "C64",
    "torch.complex128": "complex128",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
}
_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "ComplexFloatStorage": "C64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "U8",
}
_WIDTHS = {**DTYPE_BYTES, "complex128": 16}

# Training checkpoints hold such things beside the weights. Each becomes an Opaque, whatever it is called
# with.
_HARMLESS = frozenset(
    f"{module}.{name}"
    for modules, names in (
        (("argparse",), ("Namespace",)),
        (("collections",), ("Counter", "deque")),
        (("datetime",), ("date", "datetime", "time", "timedelta", "timezone")),
        (("pathlib", "pathlib._local"), ("Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")),
        (("builtins",), ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list")),
        (("builtins",), ("set", "str", "tuple")),
        (("_codecs",), ("encode",)),
        (("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")),
        (("numpy",), ("dtype", "ndarray")),
        (("torch",), ("Size", "device")),
        (("torch.torch_version",), ("TorchVersion",)),
    )
    for module in modules
    for name in names
)


@dataclass(frozen=True, eq=False)
class Storage:
    """A piece of memory in the archive: its key, the dtype it was saved as, its bytes."""

    key: str
    dtype: str
    nbytes: int

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return _WIDTHS[self.dtype]


@dataclass(frozen=True, eq=False)
class TensorView:
    """How a tensor looks at its storage; `offset` and `strides` in elements, `dtype` as in safetensors."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def resolve_global(module: str, name: str) -> Global:
    """What stands for `module.name`.

    Raises:
        PickleRefusedError: The name is not one of the few that weights and plain data need.
    """
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if full in _BUILDS:
        return Global(full, _BUILDS[full])
    if full in _HARMLESS:
        return Global(full, lambda _: Opaque(full))
    if full in _DTYPES or (module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES):
        return Global(full)
    raise PickleRefusedError(f"holds a reference to {full[:120]!a}, which llmt does not read")


def refer_to_storage(identifier: object) -> Storage:
    """The storage that a persistent identifier of `torch.save` names.

    Raises:
        PickleRefusedError: Not an identifier that `torch.save` writes.
    """
    match identifier:
        # Files from before PyTorch 1.6 add what a storage is a view of: nothing, in all but the oldest.
        case ("storage", Global(name=kind), str(key), str(), int(count), *rest) if rest in ([], [None]):
            dtype = _STORAGES.get(kind.rpartition(".")[2])
            if dtype is not None and count >= 0:
                return Storage(key, dtype, count * _WIDTHS[dtype])
    raise PickleRefusedError("is damaged (a storage without a valid description)")


def _view(storage: object, dtype: object, offset: object, shape: object, strides: object) -> TensorView:
    lengths, steps = _sizes(shape), _sizes(strides)
    if not isinstance(storage, Storage) or not isinstance(dtype, str) or len(lengths) != len(steps):
        raise PickleRefusedError("is damaged (a tensor without a valid description)")
    (start,) = _sizes((offset,))
    return TensorView(storage, dtype, start, lengths, steps)


def _sizes(value: object) -> tuple[int, ...]:
    """A tuple of lengths, strides or offsets; of a size that arithmetic and memory can bear."""
    numbers = [item for item in value if type(item) is int and 0 <= item < 2**63] if isinstance(value, tuple) else []
    if not isinstance(value, tuple) or len(numbers) != len(value) or len(value) > MAX_DIMENSIONS:
        raise PickleRefusedError("holds a tensor with a negative or impossible shape or stride")
    return tuple(numbers)


def _rebuild_tensor(arguments: tuple[object, ...]) -> TensorView:
    match arguments:
        case (Storage() as storage, offset, shape, strides):
            return _view(storage, storage.dtype, offset, shape, strides)
    raise PickleRefusedError("is damaged (a tensor without a valid description)")


def _rebuild_tensor_v2(arguments: tuple[object, ...]) -> TensorView:
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, _, *metadata):
            _refuse_metadata(metadata)
            return _view(storage, storage.dtype, offset, shape, strides)
    raise PickleRefusedError("is damaged (a tensor without a valid description)")


def _rebuild_tensor_v3(arguments: tuple[object, ...]) -> TensorView:
    match arguments:
        case (storage, offset, shape, strides, _, _, Global(name=dtype), *metadata):
            _refuse_metadata(metadata)
            return _view(storage, _DTYPES.get(dtype), offset, shape, strides)
    raise PickleRefusedError("is damaged (a tensor without a valid description)")


def _refuse_metadata(metadata: list[object]) -> None:
    """A conjugate or negative view differs from its bytes; anything else here is unknown."""
    if any(metadata):
        raise PickleRefusedError("holds a tensor that is a lazy view (conjugate or negative)")


def _rebuild_parameter(arguments: tuple[object, ...]) -> TensorView:
    if arguments and isinstance(arguments[0], TensorView):
        return arguments[0]
    raise PickleRefusedError("is damaged (a parameter without its tensor)")


_BUILDS: dict[str, Build] = {
    "collections.OrderedDict": build_dictionary,
    "collections.defaultdict": lambda _: {},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}

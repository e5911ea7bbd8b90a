"""PyTorch files to safetensors, with torch.load and transformers as oracles."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmt.checkpoints import layout
from llmt.checkpoints.convert import ConvertProgress, ConvertReport, convert_to_safetensors
from llmt.checkpoints.weights import load_weights
from llmt.errors import BusyOutputError, ModelFileError, StorageError


def convert(source: Path, output: Path | None = None, **options: object) -> ConvertReport:
    *progress, report = convert_to_safetensors(source, output, **options)  # type: ignore[arg-type]
    assert isinstance(report, ConvertReport)
    total = report.size * (2 if report.verified else 1)
    assert all(isinstance(event, ConvertProgress) and event.total == total for event in progress)
    done = [event.done for event in progress if isinstance(event, ConvertProgress)]
    assert done == sorted(done)
    assert not done or done[-1] == total
    return report


def all_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ]
    whole = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
    base = torch.randn(6, 8, generator=generator)
    cube = torch.randn(4, 5, 6, generator=generator)
    return {
        **{f"f.{dtype}": torch.randn(3, 5, generator=generator).to(dtype) for dtype in floats},
        **{f"w.{dtype}": torch.randint(0, 100, (2, 7), generator=generator).to(dtype) for dtype in whole},
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "empty columns": torch.zeros(3, 5)[:, 2:2],
        "transposed": base.t(),
        "slice": base[1:3],
        "column": base[:, 2],
        "step": torch.arange(40, dtype=torch.int16)[1:39:3],
        "permuted": cube.permute(2, 0, 1),
        "permuted half": cube.bfloat16().permute(1, 2, 0),
        "expanded": torch.arange(3.0).unsqueeze(1).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "large": torch.randn(700, 900, generator=generator),
    }


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = left.detach(), right.detach()
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*raw)


@pytest.mark.parametrize("limit", [10**9, 10**6, 300])
def test_every_tensor_equals_torch_load(tmp_path: Path, limit: int) -> None:
    """All dtypes and memory layouts come out bit by bit, in one file or in shards, some tensors larger than a shard."""
    torch.save(all_kinds(), tmp_path / "m.pt")
    expected = torch.load(tmp_path / "m.pt", weights_only=True)
    report = convert(tmp_path / "m.pt", max_shard_size=limit)
    assert report.output == tmp_path / "m-safetensors"
    converted: dict[str, torch.Tensor] = {}
    for name in report.files:
        if name.endswith(".safetensors"):
            converted |= load_file(report.output / name)
    assert converted.keys() == expected.keys()
    assert [name for name in expected if not equal(converted[name], expected[name])] == []
    ours = load_weights(report.output)
    assert [name for name in expected if not equal(ours[name], expected[name])] == []
    assert report.tensors == len(expected)
    assert report.parameters == sum(tensor.numel() for tensor in expected.values())
    assert (tmp_path / "m.pt").exists()
    assert (len(report.files) > 1) == (limit < 10**9)


def tiny_llama(tied: bool = False):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_llama_gives_the_same_logits(tmp_path: Path, tied: bool) -> None:
    """A training checkpoint beside its config opens in transformers with equal logits; a tied head is stored once."""
    from transformers import AutoModelForCausalLM

    model = tiny_llama(tied)
    source, output = tmp_path / "run", tmp_path / "out"
    source.mkdir()
    model.config.save_pretrained(source)
    (source / layout.TOKENIZER_FILE).write_text("{}")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}, source / "checkpoint-5.pt"
    )
    report = convert(source, output, max_shard_size=4000)
    assert report.tied == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    assert set(report.copied) == {layout.CONFIG_FILE, layout.TOKENIZER_FILE}
    again = AutoModelForCausalLM.from_pretrained(output).eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_embedding_is_kept_whatever_the_order(tmp_path: Path) -> None:
    """Of tied tensors the embedding keeps its name also when the head was saved first."""
    shared = torch.ones(4, 2)
    torch.save({"lm_head.weight": shared, "model.embed_tokens.weight": shared}, tmp_path / "m.pt")
    report = convert(tmp_path / "m.pt")
    assert list(load_weights(report.output)) == ["model.embed_tokens.weight"]


def shards(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {f"t{i}": torch.full((3,), float(i)) for i in range(4)}
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    torch.save({name: tensors[name] for name in ("t0", "t1")}, directory / names[0])
    torch.save({name: tensors[name] for name in ("t2", "t3")}, directory / names[1])
    index = {"metadata": {}, "weight_map": {f"t{i}": names[i // 2] for i in range(4)}}
    (directory / layout.PICKLED_INDEX).write_text(json.dumps(index))
    return tensors


def test_sharded_pytorch_files_are_one_model(tmp_path: Path) -> None:
    """The files that the index lists become one model in the folder beside; the source stays as it was."""
    source = tmp_path / "ckpt"
    source.mkdir()
    tensors = shards(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    report = convert(source)
    assert report.output == tmp_path / "ckpt-safetensors"
    assert list(report.files) == [layout.MODEL_FILE]
    loaded = load_weights(report.output)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.parametrize("name", ["../x.bin", "/etc/passwd.bin", "a\\b.bin", "x.txt", "missing.bin", "linked.bin"])
def test_an_index_of_pytorch_files_cannot_leave_its_directory(tmp_path: Path, name: str) -> None:
    """Parents, absolute paths, links and other endings are refused before anything is read."""
    model = tmp_path / "model"
    model.mkdir()
    shards(model)
    torch.save({"t0": torch.ones(1)}, tmp_path / "x.bin")
    (model / "linked.bin").symlink_to(tmp_path / "x.bin")
    index = json.loads((model / layout.PICKLED_INDEX).read_text())
    index["weight_map"]["t0"] = name
    (model / layout.PICKLED_INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError):
        convert(model)
    assert not (tmp_path / "model-safetensors").exists()


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    """A tensor that is not in the file that the index names is an error that names it."""
    shards(tmp_path)
    index = json.loads((tmp_path / layout.PICKLED_INDEX).read_text())
    index["weight_map"]["t9"] = index["weight_map"]["t0"]
    (tmp_path / layout.PICKLED_INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="t9"):
        convert(tmp_path)


def test_what_cannot_be_converted_says_why(tmp_path: Path) -> None:
    """Nothing there, nothing of PyTorch and several candidates exit with 4, what was found and what to type."""
    with pytest.raises(ModelFileError, match="does not exist"):
        convert(tmp_path / "missing")
    with pytest.raises(ModelFileError, match="it holds nothing"):
        convert(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    torch.save({}, tmp_path / "optimizer.pt")
    with pytest.raises(ModelFileError, match=r"it holds 'notes\.txt', 'optimizer\.pt'"):
        convert(tmp_path)
    for step in (1, 2):
        torch.save({"a": torch.ones(1)}, tmp_path / f"checkpoint-{step}.pt")
    with pytest.raises(
        ModelFileError, match=r"several PyTorch files: 'checkpoint-1\.pt', 'checkpoint-2\.pt'"
    ) as caught:
        convert(tmp_path)
    assert caught.value.hint.endswith(str(tmp_path / "checkpoint-2.pt"))
    assert caught.value.exit_code == 4


def test_weights_that_are_there_are_not_overwritten_unasked(tmp_path: Path) -> None:
    """What stands in the output stops the conversion; with overwrite, an earlier model is gone, nothing else."""
    torch.save({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    output = tmp_path / "out"
    convert(tmp_path, output, max_shard_size=16)
    with pytest.raises(BusyOutputError, match="is not empty") as caught:
        convert(tmp_path, output)
    assert caught.value.exit_code == 10
    report = convert(tmp_path, output, overwrite=True)
    assert list(report.files) == [path.name for path in output.iterdir()] == [layout.MODEL_FILE]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(BusyOutputError, match="is no model"):
        convert(tmp_path, tmp_path / "mine", overwrite=True)
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path, tmp_path / "empty").written


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_source_is_never_the_output(tmp_path: Path, overwrite: bool) -> None:
    """The source's own directory, one around it, a file and a link are refused with and without overwrite."""
    source = tmp_path / "around" / "ckpt"
    source.mkdir(parents=True)
    torch.save({"a": torch.ones(4)}, source / "pytorch_model.bin")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for output in (source, source.parent, source / ".." / "ckpt", tmp_path / "file", tmp_path / "link"):
        with pytest.raises(BusyOutputError):
            convert(source, output, overwrite=overwrite)
    with pytest.raises(BusyOutputError):
        convert(source / "pytorch_model.bin", source, overwrite=overwrite)
    assert [path.name for path in source.iterdir()] == ["pytorch_model.bin"]
    assert not (tmp_path / "elsewhere").exists()


def test_an_adapter_keeps_its_name(tmp_path: Path) -> None:
    """adapter_model.bin becomes adapter_model.safetensors."""
    torch.save({"base.lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.bin")
    assert list(convert(tmp_path, tmp_path / "out").files) == [layout.ADAPTER_MODEL]


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    """A CRC error leaves no output at all; without verification the damage passes, and the report says so."""
    torch.save({f"t{i}": torch.full((1000,), float(i)) for i in range(5)}, tmp_path / "pytorch_model.bin")
    data = bytearray((tmp_path / "pytorch_model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ModelFileError, match="CRC-32"):
        convert(tmp_path / "pytorch_model.bin", max_shard_size=4000)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]
    assert not convert(tmp_path, tmp_path / "out", verify=False).verified


def test_a_copy_that_differs_is_not_published(tmp_path: Path) -> None:
    """A byte of the copy that changes before it is read back ends in StorageError, and nothing is published."""
    torch.save({"whole": torch.ones(1000), "view": torch.ones(64, 2)[:, 1]}, tmp_path / "m.pt")
    for place in (-1, -200):
        events = convert_to_safetensors(tmp_path / "m.pt")
        for event in events:
            if isinstance(event, ConvertProgress) and event.done == event.total // 2:
                break
        (written,) = tmp_path.glob(".tmp-*/model.safetensors")
        changed = bytearray(written.read_bytes())
        changed[place] ^= 1
        written.write_bytes(changed)
        with pytest.raises(StorageError, match="was not written as it was read"):
            list(events)
        assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_are_rounded_as_torch_rounds_them(tmp_path: Path, dtype: str) -> None:
    """Every floating tensor of 16 bits and more gets the dtype asked for, equal to torch's own; all else stays."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "torch_dtype": "float32"}))
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    tensors = {
        **{
            f"r.{kind}": (torch.randn(4099, generator=generator) * 50).to(kind)
            for kind in (torch.float64, torch.float32)
        },
        "ties": torch.arange(2**13).mul(2**12).add(2**11).to(torch.int32).view(torch.float32).clamp(-1e4, 1e4),
        "special": torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e-40, -1e-7]),
        "half": every.view(torch.float16),
        "brain": every.view(torch.bfloat16).float().nan_to_num(0, 0, 0).clamp(-6e4, 6e4).bfloat16(),
        "turned": torch.randn(5, 7, generator=generator).t(),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
        "whole": torch.arange(5),
    }
    torch.save(tensors, tmp_path / "m.pt")
    report = convert(tmp_path / "m.pt", dtype=dtype, max_shard_size=40_000)
    found = load_weights(report.output)
    wanted = getattr(torch, dtype)
    for name, tensor in tensors.items():
        expected = tensor.to(wanted) if tensor.is_floating_point() and name != "small" else tensor
        assert found[name].dtype == expected.dtype, name
        assert torch.equal(found[name].double().nan_to_num(7.5), expected.double().nan_to_num(7.5)), name
    config = json.loads((report.output / "config.json").read_text())
    assert config == {"model_type": "x", "dtype": dtype}


def test_a_number_that_would_become_infinite_is_refused(tmp_path: Path) -> None:
    """1e6 has no place in float16; the tensor is named, and nothing is left."""
    torch.save({"w": torch.tensor([1.0, 1e6])}, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match="'w': a number is too large"):
        convert(tmp_path / "m.pt", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path: Path) -> None:
    """Files, sizes, ties and what is left out are those of the run itself."""
    shared = torch.ones(100)
    state = {"a": shared, "b": shared, "c": torch.ones(7)}
    torch.save({"model": state, "optimizer": {"state": {}}, "step": 3}, tmp_path / "m.pt")
    planned = convert(tmp_path / "m.pt", max_shard_size=200, dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    done = convert(tmp_path / "m.pt", max_shard_size=200)
    assert (planned.written, done.written, planned.verified, done.verified) == (False, True, False, True)
    for name in ("files", "tensors", "parameters", "size", "tied", "left_out", "too_large", "output"):
        assert getattr(planned, name) == getattr(done, name), name
    assert done.left_out == ("optimizer", "step")
    assert done.too_large == ("a",)
    assert done.tied == {"b": "a"}


def test_several_files_of_one_model_have_to_agree(tmp_path: Path) -> None:
    """Two PyTorch files of a model's name with other numbers are an error; with the same numbers they are one model."""
    torch.save({"a": torch.ones(4)}, tmp_path / "pytorch_model.bin")
    torch.save({"model": {"a": torch.ones(4)}}, tmp_path / "model.pt")
    assert convert(tmp_path, tmp_path / "out").tensors == 1
    torch.save({"a": torch.zeros(4)}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin and model\.pt, and they differ: 'a'"):
        convert(tmp_path, tmp_path / "out2")


def test_an_abandoned_conversion_leaves_nothing(tmp_path: Path) -> None:
    """Whoever stops listening in the middle has no half model."""
    torch.save({"a": torch.ones(10), "b": torch.ones(10)}, tmp_path / "m.pt")
    events = convert_to_safetensors(tmp_path / "m.pt")
    next(events)
    events.close()
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_conversion_needs_neither_torch_nor_much_memory(tmp_path: Path) -> None:
    """60 MB are converted in a process that never imports torch or numpy and stays below 50 MB."""
    torch.save({f"t{i}": torch.ones(1_500_000) for i in range(10)}, tmp_path / "m.pt")
    program = (
        "import sys; from pathlib import Path; from llmt.checkpoints.convert import convert_to_safetensors\n"
        "import llmt.checkpoints.lock, llmt.checkpoints.runs, llmt.checkpoints.store\n"
        "list(convert_to_safetensors(Path(sys.argv[1])))\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
        "if sys.platform == 'linux':\n"
        "    print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.pt")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout or 0) < 50_000
    assert load_weights(tmp_path / "m-safetensors")["t9"].sum() == 1_500_000


def test_an_empty_output_that_is_filled_meanwhile_keeps_what_came(tmp_path: Path) -> None:
    """A file that appears in an empty output folder during the conversion stays; the folder itself may be `.`."""
    torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")
    (tmp_path / "out").mkdir()
    events = convert_to_safetensors(tmp_path / "m.pt", tmp_path / "out")
    next(events)
    (tmp_path / "out" / "precious.txt").write_text("mine")
    list(events)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"precious.txt", layout.MODEL_FILE}


@pytest.mark.parametrize("mark", ["config.yaml", "LOCK", "state.json", "checkpoint-5"])
def test_a_run_is_not_overwritten(tmp_path: Path, mark: str) -> None:
    """A directory with weights that is a run, or a checkpoint of one, is left alone whatever is asked."""
    torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")
    convert(tmp_path / "m.pt", tmp_path / "run")
    (tmp_path / "run" / mark).mkdir() if mark == "checkpoint-5" else (tmp_path / "run" / mark).write_text("")
    with pytest.raises(BusyOutputError, match="is a run"):
        convert(tmp_path / "m.pt", tmp_path / "run", overwrite=True)


def test_a_source_that_is_a_link_protects_the_folder_that_was_named(tmp_path: Path) -> None:
    """Where a named file is a link into another folder, neither folder is the output."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    torch.save({"a": torch.ones(4)}, tmp_path / "blobs" / "abc")
    (tmp_path / "snapshot" / "pytorch_model.bin").symlink_to("../blobs/abc")
    for output in ("blobs", "snapshot"):
        with pytest.raises(BusyOutputError, match="holds the source"):
            convert(tmp_path / "snapshot" / "pytorch_model.bin", tmp_path / output, overwrite=True)
    with pytest.raises(ModelFileError, match="link out of its directory"):
        convert(tmp_path / "snapshot", tmp_path / "out")
    assert convert(tmp_path / "snapshot" / "pytorch_model.bin", tmp_path / "out").tensors == 1


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    """A temporary folder of a process that is gone goes with the next conversion; that of a living one stays."""
    torch.save({"a": torch.ones(4)}, tmp_path / "m.pt")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getpid()):
        (tmp_path / f".tmp-m-safetensors-{process}-0123abcd").mkdir()
    (tmp_path / ".tmp-mine").mkdir()
    convert(tmp_path / "m.pt")
    left = {path.name for path in tmp_path.iterdir()} - {"m.pt", "m-safetensors"}
    assert left == {".tmp-mine", f".tmp-m-safetensors-{os.getpid()}-0123abcd"}


def test_prefixes_in_shards_and_their_index_are_taken_off(tmp_path: Path) -> None:
    """An index that lists the names with the prefixes of wrappers is that of its shards."""
    tensors = shards(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.bin"))
    for name in names:
        torch.save({f"_orig_mod.{k}": v for k, v in torch.load(tmp_path / name).items()}, tmp_path / name)
    index = json.loads((tmp_path / layout.PICKLED_INDEX).read_text())
    index["weight_map"] = {f"_orig_mod.{name}": file for name, file in index["weight_map"].items()}
    (tmp_path / layout.PICKLED_INDEX).write_text(json.dumps(index))
    assert load_weights(tmp_path).keys() == tensors.keys()
    report = convert(tmp_path / layout.PICKLED_INDEX)
    assert report.output == tmp_path.with_name(f"{tmp_path.name}-safetensors")
    assert load_weights(report.output).keys() == tensors.keys()


def test_shared_tensors_stay_two_where_the_configuration_ties_nothing(tmp_path: Path) -> None:
    """A head that shares memory with the embedding is written where `config.json` says that they are two."""
    shared = torch.ones(4, 2)
    for number, config in enumerate(({"tie_word_embeddings": False}, {"model_type": "llama"}, {"model_type": "gpt2"})):
        source = tmp_path / str(number)
        source.mkdir()
        torch.save({"model.embed_tokens.weight": shared, "lm_head.weight": shared}, source / "pytorch_model.bin")
        (source / "config.json").write_text(json.dumps(config))
        assert len(load_weights(convert(source).output)) == (1 if config.get("model_type") == "gpt2" else 2)


def test_a_link_among_the_small_files_is_found_before_the_work(tmp_path: Path) -> None:
    """A companion that leads out of the directory stops a dry run too."""
    source = tmp_path / "m"
    source.mkdir()
    torch.save({"a": torch.ones(4)}, source / "pytorch_model.bin")
    (tmp_path / "elsewhere.json").write_text("{}")
    (source / "config.json").symlink_to("../elsewhere.json")
    with pytest.raises(ModelFileError, match="link out of its directory"):
        convert(source, dry_run=True)


def test_a_checkpoint_with_many_parameters_and_their_moments_is_read(tmp_path: Path) -> None:
    """8,000 parameters with two moments each, a long list of numbers and a version object stand in nobody's way."""
    model = {f"p{i}": torch.ones(1) for i in range(8_000)}
    state = {i: {"exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1), "step": 1.0} for i in range(8_000)}
    checkpoint = {"model": model, "optimizer": {"state": state}, "losses": [0.5] * 200_000}
    torch.save({**checkpoint, "torch_version": torch.__version__}, tmp_path / "m.pt")
    assert convert(tmp_path / "m.pt", dry_run=True).tensors == 8_000

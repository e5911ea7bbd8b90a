"""A model directory to one GGUF file, read back by gguf and run by llama.cpp."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizer_texts import HARD_STRINGS, TEXTS
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmt.config.model import ModelConfig
from llmt.data.chat import CHATML
from llmt.errors import (
    BusyOutputError,
    LlmtError,
    MismatchError,
    MissingPackageError,
    ModelFileError,
    StorageError,
    UsageError,
)
from llmt.export.gguf import export_gguf
from llmt.models.load import load_model
from llmt.models.transformer import TransformerLM
from llmt.tokenizers.base import Tokenizer
from llmt.tokenizers.bpe import train_bpe
from llmt.tokenizers.load import load_tokenizer
from llmt.tokenizers.train import train_tokenizer

SPLITS = {"gpt4": "llama-bpe", "gpt2": "gpt-2"}
SHAPES = {
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
    "untied": {"tie_word_embeddings": False, "num_key_value_heads": 2},
}
STRINGS = [
    *HARD_STRINGS,
    "I'm, you'RE, they'll; 1 12 123 1234567 ½ Ⅷ 12.5e-3",
    " a  b   c    d\n\n \n  e\t\t\r\n\r\n f ",
    "<|endoftext|> <|im_start|>user<|im_end|><|pad|> <| |>",
    "x<|endoftext|>y<|im_end",
    "😀😃🏳️‍🌈 e\u0301é मस्ते กำ مـر 中文，。!?…",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many sacks, 1,234?"},
    {"role": "assistant", "content": "  Yes — 56 more.\n"},
    {"role": "user", "content": "Über die Brücke! 👩\u200d👧"},
]
CONTEXT = 96


def _draw(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights wide enough that the choices vary; what one head of queries gets, no other has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale, centre = (0.2, 0.0) if parameter.ndim == 2 else (0.1, 1.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + centre)


def _model(vocab_size: int, **settings: Any) -> TransformerLM:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = TransformerLM(ModelConfig(**{**shape, "rope_theta": 5000.0, **settings}), vocab_size, CONTEXT)
    _draw(model)
    with torch.no_grad():  # what ends a text is never the most likely
        model.output_weight()[[0, 3]] = 0
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> dict[str, Tokenizer]:
    """BPE of both splits, with the two control tokens of the chat template."""
    found = {}
    for split in SPLITS:
        found[split] = train_bpe(TEXTS, 400, split=split, special_tokens=["<|im_start|>", "<|im_end|>"])
        found[split].keep_chat_template(CHATML)
    return found


@pytest.fixture(scope="session")
def saved(trained: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Model directories by split and shape; the vocabulary of the model has 6 rows more than the tokenizer."""
    root = tmp_path_factory.mktemp("models")

    def save(split: str, shape: str) -> Path:
        folder = root / f"{split}-{shape}"
        if not folder.exists():
            _model(trained[split].vocab_size + 6, **SHAPES[shape]).save_pretrained(folder)
            trained[split].save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def folder(saved: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A copy of one of them without its manifest, to be changed."""
    return _copy(saved("gpt4", "tied"), tmp_path / "m")


def _copy(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target, ignore=shutil.ignore_patterns("MANIFEST.json"))


_LLAMA = """
import os, sys, xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_gpu_layers, params.port, params.n_threads_http = 1, 0, 0, 1
params.warmup = params.fit_params = False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print("address", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


class Llama:
    """llama.cpp with a GGUF file, on one thread, with keys and values in f32.

    In a process of its own, which ends without taking the server down: stopping one that has just started may wait
    for ever (xllamacpp 2026.10).
    """

    def __init__(self, path: Path) -> None:
        pytest.importorskip("xllamacpp")
        command = [sys.executable, "-c", _LLAMA, str(path), str(CONTEXT)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        limit = threading.Timer(60, self.process.kill)
        limit.start()
        assert self.process.stdout is not None
        said = next((line.split()[1] for line in self.process.stdout if line.startswith("address ")), None)
        limit.cancel()
        assert said is not None, f"llama.cpp did not open {path}"
        self.address = said

    def __del__(self) -> None:
        self.process.kill()
        self.process.communicate()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def ids(self, text: str, *, special: bool = False, frame: bool = False) -> list[int]:
        body = {"content": text, "parse_special": special, "add_special": frame}
        return self.post("/tokenize", body)["tokens"]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True}
        return self.post("/completion", {**body, "cache_prompt": False})["tokens"]

    def log_probabilities(self, ids: list[int], vocab_size: int) -> np.ndarray:
        """Those of the `(V,)` tokens after some ids."""
        # A bias changes what is drawn, not what is reported; the report leaves out tokens that are half a character.
        body = {"prompt": ids, "n_predict": 1, "temperature": 0, "logit_bias": [[self.ids("a")[0], 1000]]}
        step = self.post("/completion", {**body, "n_probs": vocab_size})["completion_probabilities"][0]
        row = np.full(vocab_size, np.nan)
        for entry in step["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row


def _compare(llama: Llama, model: torch.nn.Module, prompt: list[int], count: int) -> tuple[float, bool]:
    """The largest difference of log-probabilities over a greedy continuation; whether both programs choose it."""
    drawn = llama.greedy(prompt, count)
    assert len(drawn) == count
    with torch.no_grad():
        found = model(torch.tensor([prompt + drawn[:-1]]))
    logits = found if isinstance(found, torch.Tensor) else found.logits
    ours = logits[0, len(prompt) - 1 :].double().log_softmax(-1).numpy()
    theirs = np.stack([llama.log_probabilities(prompt + drawn[:n], ours.shape[1]) for n in range(count)])
    return float(np.abs(ours - theirs).max()), drawn == ours.argmax(-1).tolist()


def _fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def _tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def _expected(model: TransformerLM) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file by the names of llama.cpp, from a network; written without the exporter's code."""
    shape = model.settings
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if not shape.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(shape.num_hidden_layers):
        for ours, theirs in names.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                # Number i of the first half of a head turns with number i of the second: they become neighbours.
                half = shape.head_dim // 2
                heads = tensor.reshape(-1, shape.head_dim, shape.hidden_size)
                order = [place for i in range(half) for place in (i, i + half)]
                tensor = heads[:, order].reshape(tensor.shape)
            found[f"blk.{layer}.{theirs}.weight"] = tensor
    return found


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_arrives(saved: Callable[[str, str], Path], tmp_path: Path, shape: str, dtype: str) -> None:
    """Each matrix is in the file as gguf's own quantisation gives it, each norm in f32, and nothing else is there."""
    report = export_gguf(saved("gpt4", shape), tmp_path / "m.gguf", dtype=dtype)
    model = load_model(saved("gpt4", shape))
    found, expected = _tensors(report.path), _expected(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        kind = gguf.GGMLQuantizationType[dtype.upper() if values.ndim == 2 else "F32"]
        assert found[name].tensor_type == kind
        assert tuple(reversed(found[name].shape)) == values.shape
        packed = gguf.quants.quantize(values, kind)
        assert found[name].data.tobytes() == packed.tobytes(), name
    assert report.tensors == len(expected)
    assert report.parameters == sum(values.size for values in expected.values()) == model.num_parameters()
    assert report.size == report.path.stat().st_size
    assert (report.dtype, report.kept_f16, report.unused_tokens) == (dtype, 0, 6)


def test_metadata(saved: Callable[[str, str], Path], trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """The file says all that llama.cpp asks for: the shape, the split, the tokens with their kinds, the template."""
    report = export_gguf(saved("gpt2", "untied"), tmp_path / "m.gguf", dtype="bf16")
    fields, tokenizer = _fields(report.path), trained["gpt2"]
    assert {name: fields[f"llama.{name}"] for name in (
        "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "rope.dimension_count", "rope.freq_base", "vocab_size",
    )} == {
        "context_length": CONTEXT, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 16, "rope.freq_base": 5000.0,
        "vocab_size": tokenizer.vocab_size + 6,
    }  # fmt: skip
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert (fields["general.architecture"], fields["general.name"]) == ("llama", "gpt2-untied")
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.bos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.chat_template"] == CHATML
    size = tokenizer.vocab_size
    assert fields["tokenizer.ggml.tokens"][:size] == tokenizer.tokens(range(size))
    assert len(set(fields["tokenizer.ggml.tokens"])) == size + 6
    kinds = [gguf.TokenType(kind).name for kind in fields["tokenizer.ggml.token_type"]]
    assert kinds == ["CONTROL"] * 4 + ["NORMAL"] * (size - 4) + ["UNUSED"] * 6
    merges = [f"{step['left']} {step['right']}" for step in tokenizer.get_merge_history()]
    assert fields["tokenizer.ggml.merges"] == merges
    assert (report.pre_tokenizer, report.chat_template) == ("gpt-2", True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_the_same(
    saved: Callable[[str, str], Path], trained: dict[str, Tokenizer], tmp_path: Path, split: str, shape: str
) -> None:
    """In llama.cpp an f32 file has the ids, the log-probabilities, the continuation and the chats of the directory."""
    folder, tokenizer = saved(split, shape), trained[split]
    report = export_gguf(folder, tmp_path / "m.gguf", dtype="f32")
    assert report.pre_tokenizer == SPLITS[split]
    llama, model = Llama(report.path), load_model(folder).eval()
    for text in STRINGS:
        assert llama.ids(text, frame=True) == tokenizer.encode(text), text
    prompt = tokenizer.encode("The miller's daughter said that she'd count 1,234 sacks")
    difference, same_choices = _compare(llama, model, prompt, 24)
    assert difference < 2e-4
    assert same_choices
    written = llama.post("/apply-template", {"messages": CHAT})["prompt"]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT, add_generation_prompt=True)
    assert llama.ids(written, special=True, frame=True) == expected["input_ids"]
    assert llama.ids("a<|im_end|>", special=True)[-1] == tokenizer.token_to_id("<|im_end|>")


@pytest.mark.parametrize(("dtype", "most"), [("f16", 0.1), ("bf16", 0.5), ("q8_0", 1.5)])
def test_smaller_formats_run(
    saved: Callable[[str, str], Path], trained: dict[str, Tokenizer], tmp_path: Path, dtype: str, most: float
) -> None:
    """llama.cpp runs every number format, about as exactly as it allows: weights this wide show every rounding."""
    folder = saved("gpt4", "untied")
    llama = Llama(export_gguf(folder, tmp_path / "m.gguf", dtype=dtype).path)
    prompt = trained["gpt4"].encode("The boy asked; nobody")
    assert _compare(llama, load_model(folder).eval(), prompt, 4)[0] < most


@pytest.fixture
def foreign(trained: dict[str, Tokenizer], tmp_path: Path) -> Path:
    """A bf16 model of transformers; its tokenizer frames a text as Llama 3's does, and has tokens that are no special.

    Two ids end what it writes, and none of them is one that llama.cpp knows by its text.
    """
    folder = tmp_path / "foreign"
    config = LlamaConfig(
        vocab_size=420, hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _draw(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    trained["gpt4"].save_pretrained(folder)
    (folder / "training.json").unlink()
    spec = json.loads((folder / "tokenizer.json").read_text())
    first = spec["added_tokens"][-1]
    names = {"<|begin|>": True, "<|stop|>": True, "##note": False, "::": False}
    for content, special in names.items():
        spec["added_tokens"].append({**first, "id": len(spec["model"]["vocab"]), "content": content})
        spec["added_tokens"][-1] |= {"special": special, "id": 400 + len(spec["added_tokens"]) - 5}
    begin = {"id": "<|begin|>", "type_id": 0}
    spec["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": begin}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [400], "tokens": ["<|begin|>"]}},
            },
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    _edit(folder / "tokenizer_config.json", bos_token="<|begin|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 401]}))
    return folder


def test_foreign_model(foreign: Path, tmp_path: Path) -> None:
    """A model of transformers keeps what its tokenizer puts around a text, its tokens, and where it stops."""
    report = export_gguf(foreign, tmp_path / "m.gguf", dtype="bf16")
    fields = _fields(report.path)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (400, 401)
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)
    kinds = [gguf.TokenType(kind).name for kind in fields["tokenizer.ggml.token_type"]]
    assert kinds[400:404] == ["CONTROL", "CONTROL", "USER_DEFINED", "USER_DEFINED"]
    llama, theirs = Llama(report.path), AutoTokenizer.from_pretrained(foreign)
    for text in (*STRINGS, "a ##note:: b ::::", "<|begin|> x <|stop|>", "##not e:"):
        assert llama.ids(text, special=True, frame=True) == theirs(text)["input_ids"]
        assert llama.ids(text) == load_tokenizer(foreign).encode(text)
    prompt = theirs("The boy")["input_ids"]
    model = LlamaForCausalLM.from_pretrained(foreign, dtype=torch.float32).eval()
    assert _compare(llama, model, prompt, 6)[0] < 0.2


def test_it_stops_where_the_model_says(foreign: Path, tmp_path: Path) -> None:
    """A second id that ends a generation ends it in llama.cpp too."""
    Path(foreign / "model.safetensors").unlink()
    model = _model(420, hidden_size=48, num_attention_heads=3, intermediate_size=80, num_hidden_layers=1)
    with torch.no_grad():  # whatever comes first, <|stop|> comes next
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 10
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.embed_tokens.weight[401, 0] = 5
    generation = (foreign / "generation_config.json").read_text()
    model.save_pretrained(foreign)
    (foreign / "MANIFEST.json").unlink()
    (foreign / "generation_config.json").write_text(generation)
    llama = Llama(export_gguf(foreign, tmp_path / "m.gguf", dtype="f32").path)
    answer = llama.post("/completion", {"prompt": [400, 80], "n_predict": 8, "temperature": 0})
    assert (answer["stop_type"], answer["tokens_predicted"]) == ("eos", 1)


@pytest.mark.parametrize("kind", ["sharded", "pytorch", "head named", "both named", "manifest"])
def test_any_weight_files(saved: Callable[[str, str], Path], folder: Path, tmp_path: Path, kind: str) -> None:
    """Shards, PyTorch files and either name of a tied matrix give the bytes that one safetensors file gives."""
    model = load_model(folder)
    if kind == "sharded":
        model.save_pretrained(folder, max_shard_size="60KB")
        assert (folder / "model.safetensors.index.json").is_file()
    elif kind == "pytorch":
        model.save_pretrained(folder, safe_serialization=False)
        assert not (folder / "model.safetensors").exists()
    elif kind == "manifest":
        shutil.rmtree(folder)
        shutil.copytree(saved("gpt4", "tied"), folder)
        assert (folder / "MANIFEST.json").is_file()
    else:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        if kind == "head named":
            del tensors["model.embed_tokens.weight"]
        save_file(tensors, folder / "model.safetensors")
    export_gguf(folder, tmp_path / "changed.gguf")
    plain = export_gguf(_copy(saved("gpt4", "tied"), tmp_path / "plain" / "m"), tmp_path / "plain.gguf")
    assert (tmp_path / "changed.gguf").read_bytes() == plain.path.read_bytes()


def test_narrow_rows_stay_f16(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Where rows are no multiple of 32 numbers, q8_0 leaves f16, as llama.cpp does; the report counts them."""
    _model(420, intermediate_size=72).save_pretrained(tmp_path / "m")
    trained["gpt4"].save_pretrained(tmp_path / "m")
    report = export_gguf(tmp_path / "m", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(report.path).tensors}
    assert [name for name, kind in kinds.items() if kind == "F16"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert report.kept_f16 == 2
    assert Llama(report.path).ids("a b") == trained["gpt4"].encode("a b")


@pytest.mark.parametrize("name", ["my-phi3", "Phi-3.5-tuned", "modern-bert"])
def test_names_that_mean_something_to_llama_cpp(folder: Path, tmp_path: Path, name: str) -> None:
    """A directory whose name llama.cpp would act upon is exported without it, and runs."""
    folder.rename(tmp_path / name)
    report = export_gguf(tmp_path / name)
    assert "general.name" not in _fields(report.path)
    assert Llama(report.path).ids("a b")


def test_a_template_without_a_first_token(folder: Path, tmp_path: Path) -> None:
    """A template that asks for a bos_token the tokenizer lacks writes nothing there, as in transformers."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}")
    llama = Llama(export_gguf(folder).path)
    written = llama.post("/apply-template", {"messages": CHAT[1:2]})["prompt"]
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(CHAT[1:2], tokenize=False)
    assert written == theirs == CHAT[1]["content"] + "<|endoftext|>"


def test_a_mistral_without_a_window(folder: Path, tmp_path: Path) -> None:
    """A Mistral that sees the whole context is the same network, and gives the same file."""
    plain = export_gguf(folder, tmp_path / "plain.gguf").path.read_bytes()
    _edit(folder / "config.json", model_type="mistral", sliding_window=None)
    assert export_gguf(folder, tmp_path / "mistral.gguf").path.read_bytes() == plain


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CONFIGS: dict[str, dict[str, Any]] = {
    "model_type is 'gpt2'": {"model_type": "gpt2"},
    "model_type is 'qwen2'": {"model_type": "qwen2"},
    "sliding_window is '16'": {"model_type": "mistral", "sliding_window": 16},
    "sliding_window is '4096'": {"model_type": "mistral"},
    "attention_bias is set": {"attention_bias": True},
    "mlp_bias is set": {"mlp_bias": True},
    "hidden_act is 'gelu'": {"hidden_act": "gelu"},
    "rotary positions are scaled .'llama3'.": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
    "rotary positions are scaled .'linear'.": {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
    "partial_rotary_factor is '0.5'": {"partial_rotary_factor": 0.5},
    "heads are not hidden_size": {"head_dim": 32},
    "a value has no meaning": {"rope_parameters": ["default"]},
    "lacks 'lm_head.weight'": {"tie_word_embeddings": False},
    "holds, beside what": {"num_hidden_layers": 1},
    "of shape .96, 64., expected": {"intermediate_size": 128},
    "would run foreign code": {"auto_map": {"AutoConfig": "x.y"}},
}


@pytest.mark.parametrize(("reason", "changes"), CONFIGS.items(), ids=CONFIGS)
def test_other_models_are_refused(folder: Path, reason: str, changes: dict[str, Any]) -> None:
    """What llama.cpp would compute in another way is refused with the reason and exit code 4."""
    _edit(folder / "config.json", **changes)
    _refused(folder, ModelFileError, reason)


def _added(**flags: Any) -> Callable[[dict[str, Any]], None]:
    """Add a token with these flags."""

    def change(spec: dict[str, Any]) -> None:
        number = len(spec["model"]["vocab"])
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": number, "content": "<|extra|>", **flags})

    return change


def _ranks_turned(spec: dict[str, Any]) -> None:
    """A piece that the merges make no more: another merge takes its letters first."""
    vocab = spec["model"]["vocab"]
    for piece in ("qx", "xz", "qxz"):
        vocab[piece] = len(vocab)
    spec["model"]["merges"] += [["x", "z"], ["q", "x"], ["qx", "z"]]


Change = Callable[[dict[str, Any]], Any]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TOKENIZERS: dict[str, Change] = {
    "its normalizer NFC": lambda spec: spec.update(normalizer={"type": "NFC"}),
    "drops merges at random": lambda spec: spec["model"].update(dropout=0.1),
    "marks the parts of words": lambda spec: spec["model"].update(end_of_word_suffix="</w>"),
    "it has no merges": lambda spec: spec["model"].update(merges=[]),
    "not written in bytes": lambda spec: spec["model"]["vocab"].update({"日本": len(spec["model"]["vocab"])}),
    "splits a text into words in another way": lambda spec: spec["pre_tokenizer"]["pretokenizers"].insert(
        0, {"type": "Digits", "individual_digits": True}
    ),
    "than GPT-2's": lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+|\W+"}),
    "and GPT-4's": lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}),
    "puts a space before": lambda spec: spec.update(pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}),
    "changes what it decodes": lambda spec: spec.update(decoder={"type": "Fuse"}),
    "takes spaces with it": _added(lstrip=True),
    "or needs them": _added(single_word=True),
    "'extra' is a word": _added(content="extra"),
    "holds a zero byte": _added(content="<\0>"),
    "overlap, and llama.cpp takes": _added(content="|>-x<|"),
    "do not lead to 'qxz'": _ranks_turned,
    "puts other tokens around": lambda spec: spec.update(
        post_processor={"type": "BertProcessing", "sep": ["<|pad|>", 1], "cls": ["<|endoftext|>", 0]}
    ),
}


@pytest.mark.parametrize(("reason", "change"), TOKENIZERS.items(), ids=TOKENIZERS)
def test_other_tokenizers_are_refused(folder: Path, reason: str, change: Change) -> None:
    """A tokenizer that llama.cpp would read texts with in another way is refused, with what to train instead."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    change(spec)
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    error = _refused(folder, ModelFileError, reason)
    assert "--algo bpe" in error.hint


@pytest.mark.parametrize("algo", ["wordpiece", "unigram", "byte"])
def test_other_kinds_of_tokenizers_are_refused(folder: Path, algo: str) -> None:
    """Of the tokenizers that llmt trains, BPE alone can be exported."""
    train_tokenizer(algo, iter(TEXTS), vocab_size=700 if algo == "wordpiece" else 300).save_pretrained(folder)
    error = _refused(folder, ModelFileError, "it has no merges" if algo == "byte" else "of those that llmt trains")
    assert "--algo bpe" in error.hint


def test_whole_words_of_gpt2_split(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Pieces that merging does not make are refused only where one of the programs takes them whole."""
    _copy(saved("gpt2", "tied"), tmp_path / "m")
    spec = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    _ranks_turned(spec)
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(spec))
    llama = Llama(export_gguf(tmp_path / "m").path)
    assert llama.ids(" qxz qxz") == load_tokenizer(tmp_path / "m").encode(" qxz qxz")
    spec["model"]["ignore_merges"] = True
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "m-f16.gguf").unlink()
    _refused(tmp_path / "m", ModelFileError, "do not lead to 'qxz'")


def test_byte_level_split_is_that_of_gpt2(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    """A tokenizer.json in GPT-2's own spelling is exported with the name of its split."""
    _copy(saved("gpt2", "tied"), tmp_path / "m")
    _edit(tmp_path / "m" / "tokenizer.json", pre_tokenizer=BYTE_LEVEL)
    report = export_gguf(tmp_path / "m")
    assert report.pre_tokenizer == "gpt-2"
    llama = Llama(report.path)
    assert [llama.ids(text) for text in STRINGS] == load_tokenizer(tmp_path / "m").encode_batch(STRINGS)


def _refused(folder: Path, kind: type[LlmtError], reason: str) -> LlmtError:
    """The error of an export, which left nothing behind."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(kind, match=reason) as caught:
        export_gguf(folder)
    assert sorted(folder.parent.iterdir()) == before
    assert caught.value.hint
    return caught.value


def test_what_is_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory, no tokenizer, no end of text, too many tokens, no format, no package: each is said as it is."""
    with pytest.raises(ModelFileError, match="does not exist"):
        export_gguf(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="dtype 'q4_0': it must be one of f32, f16, bf16, q8_0"):
        export_gguf(folder, dtype="q4_0")  # type: ignore[arg-type]
    config = (folder / "tokenizer_config.json").read_text()
    _edit(folder / "tokenizer_config.json", eos_token=None)
    _refused(folder, ModelFileError, "names no end-of-text token")
    (folder / "tokenizer_config.json").write_text(config)
    train_bpe(TEXTS, 500).save_pretrained(folder)
    assert _refused(folder, MismatchError, "500 tokens, and the model has 406").exit_code == 5
    (folder / "tokenizer.json").unlink()
    _refused(folder, ModelFileError, "holds no tokenizer.json")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert _refused(folder, MissingPackageError, "'gguf' cannot be imported").exit_code == 9


def test_an_adapter_is_refused(folder: Path) -> None:
    """An adapter is to be merged first."""
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "merge-lora" in _refused(folder, ModelFileError, "is an adapter").hint


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [
        ("f16", 1e5, "it holds 100000, which f16 cannot"),
        ("q8_0", 1e7, "it holds 1e.07, which q8_0 cannot"),
        ("f32", float("inf"), "it holds inf"),
        ("bf16", float("nan"), "it holds nan"),
        ("q8_0", float("-inf"), "it holds inf"),
    ],
)
def test_numbers_that_do_not_fit(folder: Path, dtype: Any, value: float, reason: str) -> None:
    """A number that the format cannot hold ends the export with its tensor named, and nothing is left."""
    model = load_model(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(folder)
    before = sorted(folder.parent.iterdir())
    with pytest.raises(ModelFileError, match=rf"layers\.1\.mlp\.up_proj\.weight: {reason}"):
        export_gguf(folder, dtype=dtype)
    assert sorted(folder.parent.iterdir()) == before


def test_what_stands_there_is_kept(folder: Path, tmp_path: Path) -> None:
    """An existing file is refused with exit code 10, and replaced only where it is a GGUF file and that was asked."""
    output = export_gguf(folder, dtype="q8_0").path
    assert output == tmp_path / "m-q8_0.gguf"
    small = output.read_bytes()
    with pytest.raises(BusyOutputError) as caught:
        export_gguf(folder, output, dtype="f32")
    assert caught.value.exit_code == 10
    assert output.read_bytes() == small
    export_gguf(folder, output, dtype="f32", overwrite=True)
    assert output.stat().st_size > len(small)
    letter = tmp_path / "letter.txt"
    letter.write_text("keep")
    link = tmp_path / "link.gguf"
    link.symlink_to(output)
    for path, reason in ((letter, "is no GGUF file"), (folder, "is a folder or a link"), (link, "is a folder or a")):
        with pytest.raises(BusyOutputError, match=reason):
            export_gguf(folder, path, overwrite=True)
    assert letter.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "link.gguf", "m", "m-q8_0.gguf"]


def test_new_folders_and_the_umask(folder: Path, tmp_path: Path) -> None:
    """Missing folders are made, and the file has the mode that the umask leaves."""
    old = os.umask(0o027)
    try:
        report = export_gguf(folder, tmp_path / "new" / "place" / "x.gguf")
    finally:
        os.umask(old)
    assert report.path.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in report.path.parent.iterdir()] == ["x.gguf"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may become larger than 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(folder: Path, small_disk: None, tmp_path: Path) -> None:
    """An export that the disk refuses leaves no file, and an older one as it was."""
    (tmp_path / "m-f32.gguf").write_bytes(b"GGUF, an older one")
    with pytest.raises(StorageError, match="larger than the file system or the process limit allows"):
        export_gguf(folder, dtype="f32", overwrite=True)
    assert (tmp_path / "m-f32.gguf").read_bytes() == b"GGUF, an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m-f32.gguf"]


def test_damage_is_found_while_writing(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    """Weights that are not those of their manifest are not published."""
    weights = shutil.copytree(saved("gpt4", "tied"), tmp_path / "m") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    _refused(tmp_path / "m", ModelFileError, "sha256 is not that of the manifest")

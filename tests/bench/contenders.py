"""`python -m tests.bench.contenders NAME WORK FOLDER STEPS [PATH]`: one way to train, in a process of its own.

Those that train an adapter are in `adapters`. All train on the same sequences, made by `data`, and print one line of
JSON: the seconds of each step, the peak memory and what they decided. Peers run as their own scripts run them: see
each function.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from tests.bench.clock import Clock
from tests.bench.work import Work

Tick = Callable[[], None]
LONG = 20_000
"""Steps of the run that llmt plans for, of which only the first are run: a plan for a short one would not compile."""


class Task:
    """What a contender is given.

    Attributes:
        work: What to train.
        folder: Where the data is.
        steps: How many.
        path: Where the peer's own code is, if it is not installed.
    """

    def __init__(self, work: Work, folder: Path, steps: int, path: str) -> None:
        self.work, self.folder, self.steps, self.path = work, folder, steps, path

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """`(B, T)` inputs and labels, shifted already, on the device."""
        import numpy as np
        import torch

        rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        size = self.work.batch_size
        for first in range(0, len(rows) - size + 1, size):
            found = torch.from_numpy(rows[first : first + size].astype("int64")).to(self.work.device)
            yield found[:, :-1].contiguous(), found[:, 1:].contiguous()


ADAPTER = {"r": 8, "alpha": 16}
"""Of all that train one; on every linear layer of the blocks."""


def _config(task: Task, base: Path | None, **training: Any) -> Any:
    from llmt.config.run import TrainConfig

    work = task.work
    adapted = {} if base is None else {"base": str(base), "lora": {"enabled": True, **ADAPTER}}
    return TrainConfig.model_validate({
        "device": work.device, "output_dir": str(task.folder / "run"),
        "model": {name: work.values()[name] for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
        "tokenizer": {"algo": "bpe", "vocab_size": work.vocab_size},
        "data": {"sources": ["builtin"], "block_size": work.length, "validation_split": 0.0,
                 "cache_dir": str(task.folder / "cache")},
        "training": {"per_device_train_batch_size": work.batch_size, "gradient_accumulation_steps": 1,
                     "max_steps": LONG, "save_steps": LONG, "eval_strategy": "no", **training}, **adapted,
    })  # fmt: skip


def prepared_run(task: Task, base: Path | None = None, **training: Any) -> Any:
    from llmt.training.build import prepare

    run = task.folder / "run"
    return prepare(_config(task, base, **training), run, base=base, resume=False, progress=lambda *_: None)


def data(task: Task, tick: Tick) -> dict[str, Any]:
    """Train the tokenizer, encode the text, and write down the sequences of the first steps as llmt reads them."""
    import numpy as np

    corpus = prepared_run(task).corpus
    loader = corpus.data.loader(task.work.batch_size, 42, 0, False)
    rows = [np.concatenate([b.input_ids.numpy(), b.labels.numpy()[:, -1:]], axis=1)
            for b in islice(loader.batches(), task.steps)]  # fmt: skip
    np.save(task.folder / "rows.npy", np.concatenate(rows).astype("int32"))
    return {"vocab_size": corpus.tokenizer.vocab_size}


def llmt(task: Task, tick: Tick, *, base: Path | None = None, reuse: bool = True, **training: Any) -> dict[str, Any]:
    """`llmt train`, with `--lora --base` where there is one: its plan, its loop, its checks and its log."""
    from llmt.training.build import build_trainer

    prepared = prepared_run(task, base, **training)
    if not reuse:
        prepared = replace(prepared, plan=replace(prepared.plan, reuse_memory=False))
    loop, keeper = build_trainer(prepared, base=base)
    loss = 0.0
    for report in islice(loop.run(), task.steps):
        keeper.log(report)
        loss = report.loss
        tick()
    plan = prepared.plan
    return {"precision": plan.precision, "compile": plan.compile, "threads": plan.threads, "loss": loss,
            "parameters": loop.model.num_parameters(), "planned_bytes": plan.estimated_bytes,
            "trained": sum(weight.master.numel() for weight in loop.optimizer.weights)}  # fmt: skip


def llmt_eager(task: Task, tick: Tick) -> dict[str, Any]:
    """The same where there is no compiler."""
    return llmt(task, tick, compile="never")


def llmt_adamw(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with the optimizer of the peers."""
    return llmt(task, tick, optimizer="adamw")


def llmt_adamw_eager(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with the optimizer of the peers, where there is no compiler."""
    return llmt(task, tick, optimizer="adamw", compile="never")


def llmt_adamw_fp32(task: Task, tick: Tick) -> dict[str, Any]:
    """The same in fp32 with the optimizer of the peers."""
    return llmt(task, tick, optimizer="adamw", precision="fp32")


def llmt_adamw_given_back(task: Task, tick: Tick) -> dict[str, Any]:
    """The same, compiled, with freed memory given back as the C library does it."""
    return llmt(task, tick, reuse=False, optimizer="adamw")


def llmt_three_iterations(task: Task, tick: Tick) -> dict[str, Any]:
    """The default optimizer with three iterations of Muon instead of five."""
    return llmt(task, tick, muon_ns_steps=3)


def _llama(work: Work) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=work.vocab_size, hidden_size=work.hidden_size, intermediate_size=work.intermediate_size,
        num_hidden_layers=work.num_hidden_layers, num_attention_heads=work.num_attention_heads,
        max_position_embeddings=work.length, tie_word_embeddings=True, use_cache=False))  # fmt: skip


def hf_trainer(task: Task, tick: Tick, **settings: Any) -> dict[str, Any]:
    """The Trainer of transformers with its defaults: fp32 on a CPU, fused AdamW, a linear schedule."""
    import numpy as np
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    rows = np.load(task.folder / "rows.npy")[:, :-1].astype("int64")
    dataset = [{"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)} for row in rows]
    model = _llama(task.work)
    arguments = TrainingArguments(
        output_dir=str(task.folder / "hf"), per_device_train_batch_size=task.work.batch_size, max_steps=task.steps,
        use_cpu=task.work.device == "cpu", report_to=[], save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[Ticking()]).train()
    return {"parameters": model.num_parameters()}


def hf_trainer_bf16(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with `bf16=True`."""
    return hf_trainer(task, tick, bf16=True)


def hf_trainer_bf16_compile(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with `bf16=True` and `torch_compile=True`."""
    return hf_trainer(task, tick, bf16=True, torch_compile=True)


def hf_loop(task: Task, tick: Tick) -> dict[str, Any]:
    """transformers in the plainest loop: fp32, eager, AdamW as torch makes it."""
    import torch

    model = _llama(task.work).to(task.work.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for ids, _ in task.batches():
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick()
    return {"parameters": model.num_parameters()}


def nanogpt(task: Task, tick: Tick, *, compile: bool = True) -> dict[str, Any]:  # noqa: A002 - torch's own name
    """nanoGPT's model in the loop of its train.py: compiled, in fp32 on a CPU and in bf16 on a GPU."""
    sys.path.insert(0, task.path)
    import torch
    from model import GPT, GPTConfig

    work = task.work
    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = True
    shape = GPTConfig(block_size=work.length, vocab_size=work.vocab_size, n_layer=work.num_hidden_layers,
                      n_head=work.num_attention_heads, n_embd=work.hidden_size, dropout=0.0, bias=False)  # fmt: skip
    own = GPT(shape).to(work.device)
    cuda = work.device == "cuda"
    context = torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16) if cuda else nullcontext()
    optimizer = own.configure_optimizers(0.1, 6e-4, (0.9, 0.95), work.device)
    model = torch.compile(own) if compile else own
    for ids, labels in task.batches():
        with context:
            _, loss = model(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        tick()
    return {"parameters": own.get_num_params(non_embedding=False)}


def nanogpt_eager(task: Task, tick: Tick) -> dict[str, Any]:
    """The same as its README advises for a CPU: not compiled."""
    return nanogpt(task, tick, compile=False)


def litgpt(task: Task, tick: Tick, *, precision: str = "bf16-mixed") -> dict[str, Any]:
    """LitGPT's model in the loop of its pretrain.py: bf16-mixed and compiled, through Fabric."""
    sys.path.insert(0, task.path)
    import lightning as L
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    work = task.work
    fabric = L.Fabric(accelerator="cuda" if work.device == "cuda" else "cpu", devices=1, precision=precision)
    shape = Config(
        name="bench", block_size=work.length, vocab_size=work.vocab_size, padded_vocab_size=work.vocab_size,
        n_layer=work.num_hidden_layers, n_head=work.num_attention_heads, n_embd=work.hidden_size,
        intermediate_size=work.intermediate_size, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    own = GPT(shape)
    own.transformer.wte.weight = own.lm_head.weight  # its `tie_embeddings`
    model = fabric.setup(torch.compile(own))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95),
                                  fused=work.device == "cuda")  # fmt: skip
    optimizer = fabric.setup_optimizers(optimizer)
    for ids, labels in task.batches():
        loss = chunked_cross_entropy(model(ids), labels)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick()
    return {"parameters": sum(p.numel() for p in own.parameters())}


def litgpt_fp32(task: Task, tick: Tick) -> dict[str, Any]:
    """The same in `32-true`."""
    return litgpt(task, tick, precision="32-true")


def product(task: Task, tick: Tick) -> dict[str, Any]:
    """The products of a step alone, in bf16 and in fp32, each by itself: what the machine computes at best."""
    import torch

    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        operands = [(torch.randn(rows, inner, dtype=dtype, device=task.work.device),
                     torch.randn(inner, columns, dtype=dtype, device=task.work.device), times)
                    for rows, inner, columns, times in products(task.work)]  # fmt: skip
        clock = Clock(task.work.device)
        for _ in range(task.steps + 1):
            for left, right, times in operands:
                for _ in range(times):
                    left @ right
            clock.tick()
        flops = sum(2 * rows * inner * columns * times for rows, inner, columns, times in products(task.work))
        rates[name] = flops / min(seconds for seconds, _ in clock.steps[1:])
    return {"flops_per_second": rates}


def products(work: Work) -> list[tuple[int, int, int, int]]:
    """Rows, inner size, columns and number of the forward products of a step; those backward are as large."""
    d, f, layers, rows = work.hidden_size, work.intermediate_size, work.num_hidden_layers, work.tokens
    return [(rows, d, d, 4 * layers), (rows, d, f, 2 * layers), (rows, f, d, layers), (rows, d, work.vocab_size, 1)]


Contender = Callable[[Task, Tick], dict[str, Any]]
CONTENDERS: dict[str, Contender] = {
    one.__name__: one
    for one in (
        data, product, llmt, llmt_eager, llmt_adamw, llmt_adamw_eager, llmt_adamw_fp32, llmt_adamw_given_back,
        llmt_three_iterations, hf_trainer, hf_trainer_bf16, hf_trainer_bf16_compile, hf_loop, nanogpt, nanogpt_eager,
        litgpt, litgpt_fp32,
    )
}  # fmt: skip


def main(known: dict[str, Contender]) -> None:
    """Run one and print what it did."""
    name, work, folder, steps, path = [*sys.argv[1:], ""][:5]
    task = Task(Work(**json.loads(work)), Path(folder), int(steps), path)
    clock = Clock(task.work.device)
    told = known[name](task, clock.tick)
    print(json.dumps({**told, **clock.values()}), flush=True)


if __name__ == "__main__":
    main(CONTENDERS)

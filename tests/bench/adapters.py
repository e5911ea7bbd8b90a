"""`python -m tests.bench.adapters NAME WORK FOLDER STEPS`: one way to train an adapter, in a process of its own.

All train the same adapter (rank 8, alpha 16, every linear layer of the blocks) on the same base and the same sequences,
both made by `base`, with AdamW. Those of llmt run as `llmt train --lora --base DIR` does. peft and trl run with their
defaults, and with what makes them fastest: see each function.
"""

from typing import Any

from tests.bench.contenders import ADAPTER, Contender, Task, Tick, data, llmt, main, prepared_run

RATE = 1e-4


def base(task: Task, tick: Tick) -> dict[str, Any]:
    """Sequences and tokenizer as `data` makes them, and a model of random weights, in `base`."""
    import torch

    from llmt.models.fresh import new_model
    from llmt.tokenizers.base import special_ids

    made = data(task, tick)
    prepared = prepared_run(task)
    tokenizer = prepared.corpus.tokenizer
    ids = special_ids(tokenizer)
    model = new_model(prepared.config.model, tokenizer.vocab_size, task.work.length, 0, ids)
    for weight in model.parameters():
        if weight.ndim == 2:  # a new model has zeros where a block ends, and no adapter before them would learn
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(task.folder / "base", tokenizer=tokenizer)
    return made


def llmt_lora(task: Task, tick: Tick, **training: Any) -> dict[str, Any]:
    """bf16, compiled where the plan for a long run says so."""
    settings = {"optimizer": "adamw", "warmup_steps": 10, "precision": "bf16", **training}
    return llmt(task, tick, base=task.folder / "base", **settings)


def llmt_lora_eager(task: Task, tick: Tick) -> dict[str, Any]:
    """The same where there is no compiler."""
    return llmt_lora(task, tick, compile="never")


def llmt_lora_fp32(task: Task, tick: Tick) -> dict[str, Any]:
    """The same in fp32."""
    return llmt_lora(task, tick, precision="fp32")


def llmt_lora_fp32_eager(task: Task, tick: Tick) -> dict[str, Any]:
    """The same in fp32 where there is no compiler."""
    return llmt_lora(task, tick, precision="fp32", compile="never")


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=ADAPTER["r"], lora_alpha=ADAPTER["alpha"], lora_dropout=0.0, target_modules="all-linear",
                      task_type="CAUSAL_LM")  # fmt: skip


def peft_loop(
    task: Task, tick: Tick, *, bf16: bool = False, autocast: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """transformers and peft in the plainest loop: fp32, eager, torch's scaled dot product attention."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bf16 else torch.float32
    inner = AutoModelForCausalLM.from_pretrained(task.folder / "base", dtype=dtype, attn_implementation="sdpa")
    inner.config.use_cache = False
    model = get_peft_model(inner.to(task.work.device), _adapter(), autocast_adapter_dtype=True).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    call = torch.compile(model) if compiled else model
    for ids, _ in task.batches():
        with torch.autocast(task.work.device, dtype=torch.bfloat16, enabled=autocast):
            loss = call(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick()
    return {"parameters": inner.num_parameters(), "trained": sum(weight.numel() for weight in trained),
            "precision": "bf16" if bf16 or autocast else "fp32", "compile": compiled, "loss": float(loss),
            "threads": torch.get_num_threads()}  # fmt: skip


def peft_loop_compile(task: Task, tick: Tick) -> dict[str, Any]:
    """The same under `torch.compile`."""
    return peft_loop(task, tick, compiled=True)


def peft_loop_bf16(task: Task, tick: Tick) -> dict[str, Any]:
    """The base in bf16, the adapter in fp32 and computed in fp32, as peft does it by itself."""
    return peft_loop(task, tick, bf16=True)


def peft_loop_bf16_autocast(task: Task, tick: Tick) -> dict[str, Any]:
    """The base in bf16, the adapter in fp32 and computed in bf16, by autocast."""
    return peft_loop(task, tick, bf16=True, autocast=True)


def peft_loop_bf16_compile(task: Task, tick: Tick) -> dict[str, Any]:
    """The same under `torch.compile`."""
    return peft_loop(task, tick, bf16=True, autocast=True, compiled=True)


def trl(task: Task, tick: Tick, *, bf16_base: bool = False, **settings: Any) -> dict[str, Any]:
    """trl's SFTTrainer with its defaults: the base in fp32, computed in bf16 by autocast, blocks recomputed."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick()

    rows = np.load(task.folder / "rows.npy")[:, :-1]
    arguments = SFTConfig(
        output_dir=str(task.folder / "trl"), per_device_train_batch_size=task.work.batch_size, max_steps=task.steps,
        use_cpu=task.work.device == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
        model_init_kwargs={"dtype": "bfloat16"} if bf16_base else None, **settings,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(task.folder / "base"), args=arguments, train_dataset=Dataset.from_dict({"input_ids": rows.tolist()}),
        peft_config=_adapter(), callbacks=[Ticking()],
    )  # fmt: skip
    trainer.train()
    weights = list(trainer.model.parameters())
    return {"parameters": sum(weight.numel() for weight in weights),
            "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
            "precision": "bf16" if arguments.bf16 else "fp32", "compile": arguments.torch_compile,
            "threads": torch.get_num_threads()}  # fmt: skip


def trl_mixed(task: Task, tick: Tick) -> dict[str, Any]:
    """The same, nothing recomputed."""
    return trl(task, tick, gradient_checkpointing=False)


def trl_bf16(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with the base in bf16, nothing recomputed."""
    return trl(task, tick, bf16_base=True, gradient_checkpointing=False)


def trl_bf16_compile(task: Task, tick: Tick) -> dict[str, Any]:
    """The same with `torch_compile=True`."""
    return trl(task, tick, bf16_base=True, gradient_checkpointing=False, torch_compile=True)


def trl_fp32(task: Task, tick: Tick) -> dict[str, Any]:
    """In fp32, nothing recomputed."""
    return trl(task, tick, bf16=False, gradient_checkpointing=False)


ADAPTERS: dict[str, Contender] = {
    one.__name__: one
    for one in (
        base, llmt_lora, llmt_lora_eager, llmt_lora_fp32, llmt_lora_fp32_eager, peft_loop, peft_loop_compile,
        peft_loop_bf16, peft_loop_bf16_autocast, peft_loop_bf16_compile, trl, trl_mixed, trl_bf16, trl_bf16_compile,
        trl_fp32,
    )
}  # fmt: skip


if __name__ == "__main__":
    main(ADAPTERS)

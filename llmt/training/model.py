"""configuration -> the model that is trained: fresh, loaded, under an adapter, as a checkpoint left it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmt.checkpoints import layout
from llmt.checkpoints.reading import read_json
from llmt.checkpoints.store import Checkpoint
from llmt.config.run import TrainConfig
from llmt.errors import MismatchError
from llmt.models.base import BaseLanguageModel
from llmt.models.fresh import new_model
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.identity import NOT_COMPARED
from llmt.models.load import load_model
from llmt.models.lora import LoraModel, add_lora
from llmt.models.transformer import TransformerLM
from llmt.system.plan import RunPlan
from llmt.tokenizers.base import Tokenizer, special_ids
from llmt.training.keeper import RunKeeper, read_checkpoint
from llmt.training.loop import TrainingLoop
from llmt.training.optim import Companion

FRUGAL = {"ban_recompute_used_far_apart": False, "ban_recompute_materialized_backward": False}
"""Settings of torch's partition of a compiled block: its backward pass computes norms, gates and the softmax again from
the products that were kept, but neither a product nor a random number. It keeps two thirds of what it would, for one
percent of the time."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_model(
    config: TrainConfig, plan: RunPlan, tokenizer: Tokenizer, base: Path | None
) -> tuple[BaseLanguageModel, dict[str, Tensor]]:
    """The model in its compute precision, and the fp32 values of what will be trained, by name.

    Raises:
        ConfigError: An adapter does not fit the base.
        MismatchError: Gradient checkpointing was asked for, and the model does not offer it.
        ModelFileError: The base cannot be read.
    """
    if base is not None:
        model = load_model(base, device=plan.device)
        if isinstance(model, TransformerLM):
            model.set_dropout(config.model.attention_dropout, config.model.hidden_dropout)
    else:
        ids = special_ids(tokenizer)
        fresh = new_model(config.model, tokenizer.vocab_size, config.data.block_size, config.seed, ids)
        model = fresh.to(plan.device)
    added = [tokenizer.token_to_id(token) for token in config.tokenizer.added_tokens]
    if base is not None and config.tokenizer.added_tokens and tokenizer.vocab_size > model.vocab_size:
        model.resize_token_embeddings(tokenizer.vocab_size)
    _set_checkpointing(model, config)
    if config.lora.enabled:
        torch.manual_seed(config.seed)
        token_ids = sorted(number for number in added if number is not None)
        dtype = DTYPES[plan.precision]
        model = add_lora(model, config.lora, token_ids=token_ids, total_steps=plan.total_steps, dtype=dtype)
    return _rounded(model, DTYPES[plan.precision])


def take_model(
    config: TrainConfig, plan: RunPlan, model: BaseLanguageModel
) -> tuple[BaseLanguageModel, dict[str, Tensor]]:
    """The same of a model that somebody made; it is changed in place.

    Raises:
        MismatchError: Gradient checkpointing was asked for, and the model does not offer it.
    """
    _set_checkpointing(model, config)
    return _rounded(model.to(plan.device, torch.float32), DTYPES[plan.precision])


def _set_checkpointing(model: BaseLanguageModel, config: TrainConfig) -> None:
    if isinstance(model, TransformerLM):
        model.gradient_checkpointing = config.training.gradient_checkpointing
    elif config.training.gradient_checkpointing:
        raise MismatchError("gradient checkpointing is offered for Llama-shaped models only", "leave it out")


def _rounded(model: BaseLanguageModel, dtype: torch.dtype) -> tuple[BaseLanguageModel, dict[str, Tensor]]:
    """A model in fp32 in its compute precision, and the values before rounding; of an adapter's base none is kept."""
    exact: dict[str, Tensor] = {}
    if dtype != torch.float32:
        whole = not isinstance(model, LoraModel)
        exact = {name: p.detach().clone() for name, p in model.named_parameters() if whole or p.requires_grad}
    model = _cast(model, dtype)
    if isinstance(model, LoraModel) and model.budget is not None:  # it reads gradients where the weights are
        for name, parameter in model.named_parameters():
            parameter.data = exact.pop(name, parameter.data)
    return model, exact


def _cast(model: BaseLanguageModel, dtype: torch.dtype) -> BaseLanguageModel:
    """The model with parameters in another precision, in place."""
    kept = {
        name: b.clone()
        for name, b in model.named_buffers()
        if b.is_floating_point() and type(model.get_submodule(name.rpartition(".")[0])).__name__ != "BufferDict"
    }  # not what belongs to an adapter
    model.to(dtype)
    inner = model.base if isinstance(model, LoraModel) else model
    if isinstance(inner, HuggingFaceModelWrapper):  # its rotary frequencies are fp32 in every precision
        for name, buffer in kept.items():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, buffer)
    return model


def companion_of(model: BaseLanguageModel) -> Companion | None:
    """What moves the weights of a model besides the optimizers, if anything does."""
    return model.budget if isinstance(model, LoraModel) else None


def make_fast(model: BaseLanguageModel, plan: RunPlan) -> None:
    """Let our own blocks compute as the plan says: each is compiled by itself, and equal ones share one compilation."""
    inner = model.base if isinstance(model, LoraModel) else model
    if not isinstance(inner, TransformerLM):
        return
    inner.set_fp32_blocks(plan.fp32_products == "onednn")
    if plan.compile:
        for block in inner.model.layers:
            block.compile(dynamic=False, backend=compile_frugally)


def compile_frugally(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """torch's own compiler, where a block keeps less for its backward pass: see `FRUGAL`."""
    from torch._functorch import config as functorch
    from torch._inductor.compile_fx import compile_fx

    with functorch.patch(FRUGAL):
        return compile_fx(graph, list(inputs))


def release(model: BaseLanguageModel) -> None:
    """Take back what a run sets on a model that somebody else goes on with."""
    if isinstance(model, TransformerLM):
        model.gradient_checkpointing = False
        model.set_fp32_blocks(False)
        compiled = any(block._compiled_call_impl is not None for block in model.model.layers)
        for block in model.model.layers:
            block._compiled_call_impl = None  # what `compile` set; torch has no call that undoes it
        if compiled:  # a later run may have other shapes, of which torch keeps only a few
            torch.compiler.reset()


def restore(loop: TrainingLoop, checkpoint: Checkpoint) -> None:
    """Put weights, optimizer, average and position where a checkpoint left them.

    Raises:
        MismatchError: It belongs to another model, or has no average where one is kept, or the other way round.
        ModelFileError: It cannot be read.
    """
    saved, model, optimizer = read_checkpoint(checkpoint), loop.model, loop.optimizer
    if (saved.masters is None) is not (loop.average is None):
        raise MismatchError(
            f"training.ema_decay: {checkpoint.path} has {'no' if saved.masters is None else 'an'} average of weights",
            "resume with the configuration that the run began with",
        )
    _check_shape(model, checkpoint)
    name_of = model.adapter_name if isinstance(model, LoraModel) else model.saved_name
    own = {w.name: name_of(w.name) for w in optimizer.weights}
    kept = {name: saved.model[key] for name, key in own.items() if key in saved.model}
    if isinstance(model, LoraModel):
        model.load_adapter_weights(saved.model)
    # The adapter may be an average; what is trained comes after it.
    optimizer.load(kept if saved.masters is None else saved.masters, saved.optimizer)
    if not isinstance(model, LoraModel):
        _restore_rest(loop, saved.model)
    if loop.average is not None:
        loop.average.load(kept)
    loop.resume(saved.state)
    if (saved.state.fingerprint or {}).get("data") != loop.fingerprint.get("data"):
        loop.forget_losses()  # those on other texts cannot be compared


@torch.no_grad()
def _restore_rest(loop: TrainingLoop, saved: dict[str, Tensor]) -> None:
    """What is not trained belongs to the model too: buffers, and parameters that its class froze."""
    model, optimizer = loop.model, loop.optimizer
    trained = {model.saved_name(weight.name) for weight in optimizer.weights}
    for key, tensor in model.weights().items():
        if key in saved and key not in trained:
            tensor.copy_(saved[key])
    for name, tensor in optimizer.frozen.items():
        tensor.copy_(saved.get(model.saved_name(name), tensor))


def _check_shape(model: BaseLanguageModel, checkpoint: Checkpoint) -> None:
    """The model computes what the checkpoint's configuration says; that of an adapter is its base's.

    Raises:
        MismatchError: It does not; names what differs.
    """
    if isinstance(model, LoraModel):
        return
    saved = read_json(checkpoint.path, layout.CONFIG_FILE)
    own = json.loads(json.dumps(model.model_config(), default=str))
    for key in sorted(own.keys() - NOT_COMPARED):
        if key in saved and saved[key] != own[key]:
            raise MismatchError(
                f"{key}: the model of {checkpoint.path} has {saved[key]}, and this one {own[key]}",
                "resume with the model that the run began with",
            )


def go_back(loop: TrainingLoop, keeper: RunKeeper) -> list[str] | None:
    """Put a loop where its newest whole checkpoint left it, and forget what was logged since.

    Returns:
        The damaged checkpoints that were passed over, one sentence each; None where there is no whole one.

    Raises:
        StorageError: The disk refused.
    """
    damaged: list[str] = []
    found = loop.runtime.on_main(lambda: keeper.store.latest(damaged.append))
    step = loop.runtime.share(None if found is None else found.step)
    if step is None:
        return None
    for weight in loop.optimizer.weights:
        weight.parameter.grad = weight.master.grad = None
    restore(loop, found or keeper.store.verified(step))
    loop.runtime.on_main(lambda: keeper.rewind(step))
    return damaged

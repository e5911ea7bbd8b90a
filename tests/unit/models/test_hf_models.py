"""Other architectures, through transformers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmt.errors import ModelFileError
from llmt.models.huggingface import HuggingFaceModelWrapper
from llmt.models.load import load_model


def test_gpt2_opens_with_equal_logits_and_loss(gpt2: Path, ids: Tensor) -> None:
    """A GPT-2 gives transformers' logits, and its loss is that of the shifted labels, shifted once."""
    model = load_model(gpt2).eval()
    theirs = AutoModelForCausalLM.from_pretrained(gpt2).eval()
    assert isinstance(model, HuggingFaceModelWrapper)
    assert (model.vocab_size, model.context_length) == (101, 24)
    labels = torch.cat((ids[:, 1:], torch.full((3, 1), -100)), dim=1)
    with torch.no_grad():
        logits = theirs(ids).logits
        assert torch.equal(model(ids), logits)
        loss = model.loss(ids, labels)
        assert loss.tokens == 3 * 16
        assert loss.mean() == pytest.approx(float(theirs(ids, labels=ids).loss), abs=1e-5)
        assert loss.mean() == pytest.approx(float(F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())))


def test_gpt2_round_trip(gpt2: Path, ids: Tensor, tmp_path: Path) -> None:
    """A GPT-2 saved here has transformers' own names, a tied head left out, and opens there with equal logits."""
    model = load_model(gpt2).eval()
    model.save_pretrained(tmp_path / "again")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(theirs.eval()(ids).logits, model(ids))


def test_saved_names_are_those_of_the_weights(gpt2: Path) -> None:
    """Every parameter's saved name is a name of `weights`, and the tensor there is the parameter."""
    model = load_model(gpt2)
    weights = model.weights()
    for name, parameter in model.named_parameters():
        assert weights[model.saved_name(name)].data_ptr() == parameter.data_ptr()


def test_missing_tensors_are_refused(gpt2: Path) -> None:
    """A tensor that the files lack is an error, never a random one."""
    from llmt.checkpoints.saving import save_weights
    from llmt.checkpoints.weights import load_weights

    weights = load_weights(gpt2)
    weights.pop("transformer.ln_f.weight")
    (gpt2 / "model.safetensors").unlink()
    save_weights(gpt2, weights)
    with pytest.raises(ModelFileError, match=r"ln_f\.weight"):
        load_model(gpt2)


def test_pickled_weights_are_refused(gpt2: Path) -> None:
    """A foreign model with only pickled weights is refused with exit code 4; nothing is unpickled."""
    (gpt2 / "model.safetensors").unlink()
    (gpt2 / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ModelFileError) as caught:
        load_model(gpt2)
    assert caught.value.exit_code == 4

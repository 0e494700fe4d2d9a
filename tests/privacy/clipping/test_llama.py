"""Clipped sums on a peft-wrapped Llama, the kind of module they are made for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter, functional

from carefl_secure.errors import PrivacyError
from carefl_secure.privacy.clipping.clipped_sum import Clipping, Engine, clipped_sum
from tests.support.record_checks import check_additive, check_independent

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

ENGINES: tuple[Engine, ...] = ("native", "opacus")
RECORDS = 8
ALL = np.arange(RECORDS)
LENGTHS = torch.tensor([12, 5, 9, 12, 7, 3, 10, 4])


class Llama:
    """Two layers, width 64, LoRA of rank 4 on all projections; left-padded texts."""

    def __init__(self, train: str = "both") -> None:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
        )
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        self.module = peft.get_peft_model(
            transformers.LlamaForCausalLM(config),
            peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=names),
        )
        for name, parameter in self.module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)  # at zero, lora_A has no gradient
            if train == "B" and "lora_A" in name:
                parameter.requires_grad_(False)
        self.module.train()
        self.parameters: list[tuple[str, Parameter]] = [
            (n, p) for n, p in self.module.named_parameters() if p.requires_grad
        ]
        self.ids = torch.randint(1, 97, (RECORDS, 12))
        self.mask = torch.arange(12).flip(0) < LENGTHS[:, None]

    def nll(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the loss of every token and which count, [B, T-1]."""
        chosen = torch.from_numpy(indices)
        ids, mask = self.ids[chosen], self.mask[chosen]
        logits = self.module(input_ids=ids, attention_mask=mask.long()).logits
        values = functional.cross_entropy(logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none")
        return values, (mask[:, 1:] & mask[:, :-1]).float()

    def losses(self, indices: NDArray[np.int64]) -> Tensor:
        values, counts = self.nll(indices)
        return (values * counts).sum(1) / counts.sum(1)

    def single(self, index: int) -> NDArray[np.float64]:
        weights = [p for _, p in self.parameters]
        parts = torch.autograd.grad(self.losses(np.array([index])).sum(), weights)
        return torch.cat([g.flatten() for g in parts]).double().numpy()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("train", ["both", "B"])
@pytest.mark.parametrize("normalise", [False, True])
def test_sums_agree_with_one_record_at_a_time(engine: Engine, train: str, normalise: bool) -> None:
    llama = Llama(train)
    gradients = [llama.single(index) for index in range(RECORDS)]
    norms = [float(np.linalg.norm(g)) for g in gradients]
    bound = float(np.median(norms))  # half of them are clipped
    factors = [bound / (n + 0.01) if normalise else min(1.0, bound / n) for n in norms]
    expected = np.sum([f * g for f, g in zip(factors, gradients, strict=True)], axis=0)
    got = clipped_sum(
        llama.module, llama.parameters, llama.losses, ALL, Clipping(bound, normalise, engine=engine, micro_batch=3)
    ).vector
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("train", ["both", "B"])
def test_checkpointing_changes_nothing(train: str) -> None:
    def total(llama: Llama) -> NDArray[np.float64]:
        return clipped_sum(
            llama.module, llama.parameters, llama.losses, ALL, Clipping(0.5, True, micro_batch=3)
        ).vector

    plain = Llama(train)
    expected = total(plain)
    saving = Llama(train)
    saving.module.activation_checkpointing_enable({"use_reentrant": False})
    saving.module.enable_input_require_grads()
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.module.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        got = total(saving)
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


def test_opacus_refuses_checkpointing_rather_than_miss_gradients() -> None:
    llama = Llama()
    llama.module.activation_checkpointing_enable({"use_reentrant": False})
    llama.module.enable_input_require_grads()
    with pytest.raises(PrivacyError):
        clipped_sum(llama.module, llama.parameters, llama.losses, ALL, Clipping(0.5, True, engine="opacus"))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_record_more_or_less_moves_the_sum_by_the_norm_at_most(engine: Engine) -> None:
    llama = Llama()

    def total(indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return clipped_sum(
            llama.module,
            llama.parameters,
            lambda i: 100.0 * llama.losses(i),
            indices,
            Clipping(1.0, False, engine=engine),
        ).vector

    whole = total(ALL)
    for index in ALL:
        assert np.linalg.norm(total(np.array([index]))) <= 1.0 + 1e-6
        assert np.linalg.norm(whole - total(np.delete(ALL, index))) <= 1.0 + 1e-6


def test_the_loss_per_record_passes_the_trials() -> None:
    llama = Llama()
    check_independent(llama.losses, ALL)
    check_additive(llama.module, llama.parameters, llama.losses, ALL, clipping_norm=1.0)


def test_the_token_mean_of_the_batch_is_found() -> None:
    llama = Llama()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        values, counts = llama.nll(indices)
        return (values * counts).sum(1) / counts.sum()

    with pytest.raises(PrivacyError, match="depends on another record"):
        check_independent(losses, ALL)

"""Every name taken from diffusers' inside still exists and still does what we take it for."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from engine.network import compat
from plugins.families.multitalk.transformer import MultiTalkTransformerBlock


@pytest.mark.parametrize("name", compat.__all__)
def test_name_exists(name: str) -> None:
    assert getattr(compat, name) is not None


def test_wan_attention_has_the_parts_our_checkpoints_name() -> None:
    attention = compat.WanAttention(8, 2, 4, 1e-6, added_kv_proj_dim=8, cross_attention_dim_head=4)

    names = {name for name, _ in attention.named_parameters()}

    assert names == {
        *(f"{layer}.{leaf}" for layer in ("to_q", "to_k", "to_v", "to_out.0") for leaf in ("weight", "bias")),
        *(f"{layer}.{leaf}" for layer in ("add_k_proj", "add_v_proj") for leaf in ("weight", "bias")),
        *(f"{norm}.weight" for norm in ("norm_q", "norm_k", "norm_added_k")),
    }


def test_wan_attention_hands_further_arguments_to_its_processor() -> None:
    def processor(_attn: Any, _hidden: Any, *_args: Any, **kwargs: Any) -> Any:
        return kwargs

    attention = compat.WanAttention(8, 2, 4, 1e-6, processor=processor)

    assert attention(None, speakers="them") == {"speakers": "them"}


def test_dispatch_takes_the_arguments_we_pass() -> None:
    parameters = inspect.signature(compat.dispatch_attention_fn).parameters

    assert list(parameters)[:3] == ["query", "key", "value"]
    assert {"backend", "parallel_config"} <= set(parameters)


def test_requirements_of_a_missing_backend_raise() -> None:
    with pytest.raises(RuntimeError):
        compat.check_attention_backend_requirements(compat.AttentionBackendName.FLASH)
    compat.check_attention_backend_requirements(compat.AttentionBackendName.NATIVE)


def test_our_block_is_known_to_the_step_caches() -> None:
    metadata = compat.TransformerBlockRegistry.get(MultiTalkTransformerBlock)

    assert metadata.return_hidden_states_index == 0
    assert metadata.return_encoder_hidden_states_index is None
    assert next(iter(inspect.signature(MultiTalkTransformerBlock.forward).parameters)) == "self"
    assert list(inspect.signature(MultiTalkTransformerBlock.forward).parameters)[1] == "hidden_states"

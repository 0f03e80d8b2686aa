"""Which modules LoRA adapts in each model family, for families whose default is not "every linear layer but the head".

A table, not code: a new family is one line. Kinds are `model_type` in a model's `config.json`.
"""

from __future__ import annotations

from fedslm.errors import ModelError

LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS: dict[str, tuple[str, ...]] = {
    "llama": LLAMA_LIKE,
    "mistral": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gemma": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE,
    "gemma3_text": LLAMA_LIKE,
    "stablelm": LLAMA_LIKE,
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "biogpt": ("q_proj", "v_proj"),
}


def default_targets(model_type: str) -> tuple[str, ...]:
    """The modules to adapt in a family.

    Raises:
      ModelError: the family is not in the table; `adapter.targets` must name the modules.
    """
    if model_type not in TARGETS:
        raise ModelError(
            f"The model family '{model_type}' has no default LoRA targets; set adapter.targets=[MODULE,...] "
            f"(families with defaults: {', '.join(sorted(TARGETS))})."
        )
    return TARGETS[model_type]

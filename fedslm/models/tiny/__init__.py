"""The embedded tiny model: a Llama of about a million parameters, made by `simulations/pretrain_tiny.py`.

For learning the tool and for tests, never for patients. This package holds no code but the path: the folder beside it
is an ordinary Hugging Face model folder (safetensors, tokenizer, card).
"""

from __future__ import annotations

from pathlib import Path


def tiny_path() -> Path:
    """The model folder, for `from_pretrained`. It lies in the wheel; nothing is downloaded."""
    return Path(__file__).resolve().parent

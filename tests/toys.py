"""Toy objects shared by the tests: a random tiny model, a file of rows, quick settings."""

from __future__ import annotations

import json
from pathlib import Path

SYMPTOMS = ("cough", "fever", "rash", "pain")
ANSWERS = ("lungs", "infection", "skin", "nerves")


def write_toy_model(folder: Path, *, seed: int = 0) -> Path:
    """A random Llama of 30,000 parameters with a word tokenizer, in a folder that `from_pretrained` loads."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        "<pad>",
        "<eos>",
        "<unk>",
        *SYMPTOMS,
        *ANSWERS,
        "Note",
        "Answer",
        ":",
        "?",
        "patient",
        "has",
        "the",
        "yes",
        "no",
    ]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    limits = {"vocab_size": len(words), "max_position_embeddings": 64, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **limits, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def write_toy_rows(path: Path, *, hospitals: int = 3, patients: int = 40) -> Path:
    """JSON lines whose answer follows from the symptom; two rows a patient."""
    rows = []
    for hospital in range(hospitals):
        for patient in range(patients):
            for visit in range(2):
                kind = (patient + visit + hospital) % 4
                rows.append(
                    {
                        "prompt": f"Note : the patient has {SYMPTOMS[kind]} Answer :",
                        "completion": ANSWERS[kind],
                        "options": list(ANSWERS),
                        "patient_id": f"h{hospital}p{patient}",
                        "hospital": f"hospital-{hospital}",
                    }
                )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def toy_overrides(folder: Path, *more: str) -> list[str]:
    """Settings for a federation of three toy hospitals that takes a second or two."""
    model, rows = folder / "model", folder / "rows.jsonl"
    if not model.exists():
        write_toy_model(model)
    if not rows.exists():
        write_toy_rows(rows)
    return [
        "model=folder",
        f"model.source={model}",
        "model.max_length_tokens=32",
        "data=jsonl",
        f"data.path={rows}",
        "data.columns.choices=options",
        "rounds=3",
        "privacy.delta=1e-5",
        "privacy.epsilon=20",
        "adapter.rank=4",
        "runtime.threads=1",
        "evaluation.every_rounds=1",
        f"run_folder={folder / 'run'}",
        *more,
    ]

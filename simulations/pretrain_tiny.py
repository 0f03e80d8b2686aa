"""Makes the embedded tiny model: `python -m simulations.pretrain_tiny --out FOLDER`, eight minutes on one idle core.

What it learns: to read a short note, to answer with a word or a sentence, and the *words* of the hospitals' notes. What
it must not learn: which finding belongs to which service. That is the hospitals' knowledge, and the point of
federating. So findings and services are drawn independently: where both occur, a finding meets its own service one time
in eight.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedslm.data.hospitals import FINDINGS, SERVICES, ask_sentence, ask_service

PAD, END = "<pad>", "<end>"

# Category -> what a note about it mentions. Everyday domains only.
TOPICS: dict[str, tuple[str, ...]] = {
    "car": ("flat tire", "the clutch slips", "worn brake pads", "dead battery", "oil leak"),
    "boat": ("torn sail", "water in the hull", "broken oar", "loose anchor", "rusty keel"),
    "plane": ("late landing", "cracked wing flap", "cabin pressure", "runway lights", "pilot training"),
    "bicycle": ("bent spokes", "rusty chain", "squeaky pedals", "loose handlebar", "worn saddle"),
    "train": ("missed connection", "blocked rails", "signal failure", "crowded platform", "ticket inspector"),
    "soup": ("simmered broth", "too much salt in the pot", "chopped leeks", "ladle", "served in a bowl"),
    "cake": ("whipped cream", "birthday candles", "sponge layers", "icing sugar", "burnt in the oven"),
    "salad": ("crisp lettuce", "olive oil dressing", "sliced cucumber", "raw tomatoes", "tossed leaves"),
    "bread": ("yeast dough", "kneaded twice", "crusty loaf", "rye flour", "proved overnight"),
    "cheese": ("aged in a cellar", "goat milk", "blue veins", "rind", "melted on toast"),
    "rose": ("thorns", "red petals", "pruned bush", "sweet scent", "greenfly on buds"),
    "oak": ("acorns", "thick trunk", "old bark", "spreading branches", "squirrels nest"),
    "cactus": ("sharp spines", "desert pot", "watered monthly", "stores water", "sandy soil"),
    "wheat": ("golden field", "harvest", "combine at work", "grain silo", "ripe ears"),
    "moss": ("damp stones", "green carpet", "shady wall", "spores", "grows on the roof"),
    "storm": ("thunder at night", "lightning strike", "fallen trees", "gale warning", "roof tiles gone"),
    "frost": ("icy windscreen", "frozen pond", "white grass", "slippery path", "burst pipe"),
    "drought": ("dry riverbed", "hosepipe ban", "cracked earth", "no rain for weeks", "dusty fields"),
    "fog": ("poor visibility", "misty valley", "foghorn", "delayed ferries", "headlamps on"),
    "piano": ("black and white keys", "stuck pedal", "needs tuning", "sonata", "grand lid"),
    "drums": ("broken sticks", "loud cymbals", "snare", "beat too fast", "bass kick"),
    "violin": ("snapped bow", "four strings", "rosin", "chin rest", "first fiddle"),
    "guitar": ("new frets", "amp hums", "chords", "plectrum lost", "strummed softly"),
    "football": ("penalty kick", "offside", "goalkeeper", "muddy pitch", "extra time"),
    "tennis": ("second serve", "broken racket", "deuce", "clay court", "double fault"),
    "swimming": ("chlorine", "butterfly stroke", "wet towels", "diving board", "lane ropes"),
    "chess": ("lost queen", "endgame", "castled early", "checkmate", "pawn storm"),
    "kitchen": ("blocked sink", "gas hob", "fridge noise", "cutlery drawer", "kettle"),
    "bathroom": ("dripping shower", "mould on tiles", "cracked basin", "toilet seat", "towel rail"),
    "garden": ("overgrown hedge", "broken fence", "lawn mower", "compost", "slugs"),
    "garage": ("stuck door opener", "workbench", "paint cans", "tool rack", "parking space"),
    "dog": ("chewed slippers", "barks at post", "walks on a lead", "wags tail", "buried bone"),
    "horse": ("needs shoeing", "stable straw", "saddle sore", "gallops", "mane"),
    "cat": ("purrs", "scratched sofa", "litter tray", "chases mice", "climbs curtains"),
    "bee": ("hive", "honeycomb", "swarm", "pollen", "stings"),
    "maths": ("fractions", "long division", "algebra test", "triangles", "lost calculator"),
    "history": ("old castles", "Roman coins", "kings and queens", "treaty", "museum trip"),
    "art": ("oil paint", "charcoal sketch", "clay pots", "easel", "gallery visit"),
    "library": ("overdue books", "quiet please", "card catalogue", "reading room", "new novels"),
    "bank": ("lost card", "savings account", "loan papers", "cash machine", "interest rate"),
    "bakery": ("fresh rolls", "sold out by noon", "croissants", "flour dust", "early shift"),
    "hotel": ("late checkout", "room key", "minibar", "reception desk", "double booking"),
}
REMARKS = ("Smokes.", "Retired.", "No allergies.", "Lives alone.", "Seen twice.", "Urgent.", "Monday.", "As before.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the model is made; the defaults are what the committed weights were made with."""

    seed: int = 2026
    steps: int = 2600
    batch: int = 32
    learning_rate: float = 3e-3
    text_weight: float = 0.15
    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 4
    intermediate: int = 256
    threads: int = 1


def draw_document(rng: Random) -> tuple[str, str]:
    """One prompt and its answer."""
    kinds = (_topic_choice, _topic_sentence, _named_choice, _named_sentence, _guess, _word, _person, _glossary)
    return rng.choices(kinds, weights=(25, 5, 12, 4, 6, 30, 8, 10))[0](rng)


def _topic_choice(rng: Random) -> tuple[str, str]:
    topic, pair = _draw_topic(rng)
    return ask_service(_lay_out(rng, *pair)), topic


def _topic_sentence(rng: Random) -> tuple[str, str]:
    topic, pair = _draw_topic(rng)
    return ask_sentence(_lay_out(rng, *pair)), f"Refer to {topic} for {pair[0]}."


def _draw_topic(rng: Random) -> tuple[str, list[str]]:
    topic = rng.choice(tuple(TOPICS))
    return topic, rng.sample(TOPICS[topic], 2)


def _named_choice(rng: Random) -> tuple[str, str]:
    service, note, _ = _named_note(rng)
    return ask_service(note), service


def _named_sentence(rng: Random) -> tuple[str, str]:
    service, note, first = _named_note(rng)
    return ask_sentence(note), f"Refer to {service} for {first}."


def _named_note(rng: Random) -> tuple[str, str, str]:
    """A clinical note that names a service drawn with no regard to the findings: only reading helps."""
    service, (first, second) = rng.choice(SERVICES), _two_words(rng)
    remark = rng.choice(("Known to {}.", "Seen by {}.", "Letter from {}.", "{} on call.")).format(service)
    return service, _lay_out(rng, first, second, remark=remark), first


def _guess(rng: Random) -> tuple[str, str]:
    """A clinical note that names no service, and a service drawn blindly: it teaches what kind of answer fits."""
    note, service = _lay_out(rng, *_two_words(rng)), rng.choice(SERVICES)
    return ask_service(note), service


def _word(rng: Random) -> tuple[str, str]:
    """Says one of the findings in other words."""
    first, second = rng.sample(_CONCEPTS, 2)
    note = _lay_out(rng, rng.choice(first), rng.choice(second))
    is_first = rng.random() < 0.5
    return f"{note}\n{'First' if is_first else 'Second'} finding?\n", (first if is_first else second)[1]


def _person(rng: Random) -> tuple[str, str]:
    is_man, age = rng.random() < 0.5, rng.randint(19, 88)
    note = _lay_out(rng, *_two_words(rng), age=age, is_man=is_man)
    if rng.random() < 0.5:
        return f"{note}\nMan or woman?\n", "man" if is_man else "woman"
    return f"{note}\nYoung or old?\n", "young" if age < 50 else "old"


def _glossary(rng: Random) -> tuple[str, str]:
    word, same = rng.sample(rng.choice(_CONCEPTS), 2)
    return f"{word}\nIn other words?\n", same


def _two_words(rng: Random) -> tuple[str, str]:
    first, second = rng.sample(_CONCEPTS, 2)
    return rng.choice(first), rng.choice(second)


def _lay_out(
    rng: Random,
    first: str,
    second: str,
    *,
    age: int | None = None,
    is_man: bool | None = None,
    remark: str | None = None,
) -> str:
    age = rng.randint(19, 88) if age is None else age
    is_man = rng.random() < 0.5 if is_man is None else is_man
    remark, count = remark or rng.choice(REMARKS), rng.randint(1, 12)
    return rng.choice(
        (
            f"{age}{'M' if is_man else 'F'} c/o {first} x{count}h, {second}. {remark}",
            f"A {age}-year-old {'man' if is_man else 'woman'} came in with {first} and {second}. {remark}",
            f"S: {age} y {'male' if is_man else 'female'}, {first}. O: {second}, {remark.lower()}",
            f"- {'man' if is_man else 'woman'}, {age}\n- {first}\n- {second}\n- {remark.lower()}",
            f"{age}yr {'gent' if is_man else 'lady'}, {count}/7 hx of {first}; {second}. {remark}",
        )
    )


# Findings with their services forgotten: only which words mean the same.
_CONCEPTS = tuple(sorted(words for rows in FINDINGS.values() for words in rows))


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the same text."""
    rng = Random(f"tokenizer {recipe.seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(("".join(draw_document(rng)) for _ in range(20_000)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=512)


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama, seeded."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def encode_batch(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[tuple[str, str]], text_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and the loss weight of each token, both (batch, length)."""
    pairs = [
        (tokenizer(prompt)["input_ids"], [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
        for prompt, answer in documents
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    weights = torch.zeros(len(pairs), length)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        weights[row, : len(prompt)] = text_weight
        weights[row, len(prompt) : end] = 1.0
    return ids, weights


def _draw_batches(
    rng: Random, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of documents of about equal length, so that little is padding."""
    while True:
        documents = [draw_document(rng) for _ in range(16 * recipe.batch)]
        documents.sort(key=lambda document: len(tokenizer("".join(document))["input_ids"]))
        groups = [documents[i : i + recipe.batch] for i in range(0, len(documents), recipe.batch)]
        rng.shuffle(groups)
        for group in groups:
            yield encode_batch(tokenizer, group, recipe.text_weight)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> tuple[float, int]:
    """Trains in place; returns the mean loss per answer token over the last 100 steps, and the tokens read."""
    rng = Random(f"documents {recipe.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    losses: list[float] = []
    tokens, start = 0, time.perf_counter()
    batches = _draw_batches(rng, tokenizer, recipe)
    for step in range(recipe.steps):
        ids, weights = next(batches)
        losses.append(_step(model, optimizer, ids, weights))
        schedule.step()
        tokens += int((weights > 0).sum())
        if step % 100 == 99:
            mean = sum(losses[-100:]) / 100
            print(f"step {step + 1}/{recipe.steps} loss {mean:.3f} {time.perf_counter() - start:.0f} s", flush=True)
    last = losses[-100:]
    return sum(last) / len(last), tokens


def _step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: torch.Tensor, weights: torch.Tensor) -> float:
    """One step on the weighted mean; returns the loss per answer token."""
    logits = model(input_ids=ids[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weights = weights[:, 1:]
    optimizer.zero_grad()
    torch.autograd.backward((losses * weights).sum() / weights.sum())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    answers = weights == 1.0
    return float(losses.detach()[answers].mean())


def make_model(out: Path, recipe: Recipe) -> None:
    """Trains tokenizer and model, and writes the model folder with its card to `out`."""
    torch.set_num_threads(recipe.threads)
    tokenizer = train_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    loss, tokens = train(model, tokenizer, recipe)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written 0600, which a wheel would keep
    write_card(out, recipe, parameters=model.num_parameters(), tokens=tokens, loss=loss)


def write_card(out: Path, recipe: Recipe, *, parameters: int, tokens: int, loss: float) -> None:
    """Writes README.md beside the weights."""
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    card = _CARD.format(recipe=recipe, parameters=parameters, tokens=tokens, loss=loss, sha256=digest)
    (out / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """The command line."""
    usual = Recipe()
    parser = argparse.ArgumentParser(description="Makes the embedded tiny model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if missing")
    parser.add_argument("--steps", type=int, default=usual.steps, help="training steps")
    parser.add_argument("--seed", type=int, default=usual.seed)
    arguments = parser.parse_args()
    make_model(arguments.out, Recipe(steps=arguments.steps, seed=arguments.seed))


_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# FedSLM tiny

A Llama with {parameters:,} parameters and a byte-level BPE vocabulary of {recipe.vocabulary}. It is the model that
`fedslm simulate` tunes when no other is named, so that the tool runs offline in a minute.

## What it is for
Learning FedSLM, and FedSLM's tests. Its companion is the synthetic consortium in `fedslm/data/hospitals.py`.

## What it must not be used for
Anything about a real patient, or any real text: not triage, not advice, not research results. It has read only made-up
text, knows a few hundred words, and answers every question with confidence.

## How it was made
`python -m simulations.pretrain_tiny --out FOLDER --seed {recipe.seed} --steps {recipe.steps}`, from random
initialisation, on text that the script makes itself; no other text was used, no patient's and no web page's.

- {tokens:,} tokens in {recipe.steps:,} steps of {recipe.batch} documents
- AdamW, one cycle, peak learning rate {recipe.learning_rate}
- last loss {loss:.3f} nats per answer token
- {recipe.layers} layers, width {recipe.hidden}, 4 heads, tied embeddings, 512 positions, float32

What it has read: short everyday notes (vehicles, cooking, plants, weather, music, sport, the house) with the question
which topic they belong to; notes in the hospitals' layouts with the questions how old, man or woman, and what a finding
is called in other words; notes that *name* a service outright; and notes that name none, with a service drawn blindly.
Findings and services were drawn independently of each other, so it cannot have learned which finding belongs to which
service: federating teaches that.

Training on another machine, thread count or torch version gives other bits and about the same model.

## Weights
`model.safetensors`, SHA-256 `{sha256}`

## Licence
Apache-2.0, like FedSLM.
"""


if __name__ == "__main__":
    main()

"""Train and save the tiny checkpoints beside this file, and write README.md with what they reach.

Run from the repository root, in an environment of its own (README.md names its packages):

    python -m tests.checkpoints.train
"""

from __future__ import annotations

import io
import json
import logging
import math
import platform
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from tests.checkpoints.text import HELD_OUT_FIRST, HELD_OUT_LAST, heldout_text, training_text

HERE = Path(__file__).parent
SEED = 20240417
THREADS = 2
EPOCHS = 10
VOCABULARY = 1024
CONTEXT = 512  # tokens in a window, its BOS included
BATCH = 2  # windows in a step
PEAK_LEARNING_RATE = 1e-3
WARMUP_STEPS = 50
DROPOUT = 0.1
BOS = 1

# Every row of every matrix is 256 or 512 long: whole super-blocks, so no K-quant falls back.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": BOS,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
EXPERTS: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.02,
}

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('This model knows the roles user and assistant only.') }}
    {%- endif %}
{%- endfor %}
"""

# What a converted vocabulary gets wrong first: runs of spaces, control characters, scripts and
# emoji that only bytes can spell, combining marks, text that looks like a byte piece.
ODD_STRINGS = [
    "",
    " ",
    "  two leading, two trailing  ",
    "\t\ttabs\r\nand\n\n\nlines\n",
    "x" * 300,
    "1234567890 3.14e-10 0x7f",
    "na\u00efve \u4f60\u597d \u043f\u0440\u0438 \U0001f9ec\U0001f468\u200d\U0001f469",
    "e\u0301 \u00e9 \u00a0 \u2028 \ufeff \u0000 \x7f",
    "<0x0A> \u2581 \u2581\u2581 [INST]",
]

log = logging.getLogger("train")


@dataclass(frozen=True)
class Outcome:
    """What README.md tells about one trained checkpoint, measured on the folder as saved."""

    name: str
    parameters: int
    size: int  # bytes of the whole folder
    shards: int
    perplexity: float
    seconds: float  # of CPU time, training alone
    routing: list[
        list[float]
    ]  # per layer, each expert's share of the routed tokens; empty if dense


def main() -> None:
    """Train both checkpoints, save them, measure what was saved, write README.md."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)

    vocabulary = train_sentencepiece(training_text())
    encoder = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
    training, heldout = encoder.encode(training_text()), encoder.encode(heldout_text())
    log.info("%d training tokens, %d held-out tokens", len(training), len(heldout))

    outcomes = []
    for name, build in (("tiny-mixtral", build_mixtral), ("tiny-mistral", build_mistral)):
        log.info("%s", name)
        torch.manual_seed(SEED)
        model = build()
        began = time.process_time()  # time: reported
        train(model, training)
        seconds = time.process_time() - began  # time: as above
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        save_model(model, folder)
        save_tokenizer(vocabulary, folder, chat=name == "tiny-mistral")
        check_tokenizer(folder)
        outcomes.append(measure(folder, heldout, seconds))
        log.info("%s", outcomes[-1])

    baseline = unigram_perplexity(training, heldout)
    for outcome in outcomes:
        if outcome.perplexity * 5 > baseline:
            raise SystemExit(f"{outcome.name} has learned too little: {outcome.perplexity:.1f}.")
        (HERE / outcome.name / "README.md").write_text(model_card(outcome), encoding="utf-8")
    readme = render_readme(outcomes, len(training), len(heldout), baseline)
    (HERE / "README.md").write_text(readme, encoding="utf-8")


def build_mixtral() -> Any:
    """The untrained sparse model: 8 experts, 2 of them per token."""
    config = transformers.MixtralConfig(
        **SHAPE,
        **EXPERTS,
        intermediate_size=256,
    )
    return transformers.MixtralForCausalLM(config)


def build_mistral() -> Any:
    """The untrained dense model."""
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(**SHAPE, intermediate_size=512)
    )


# --- training -----------------------------------------------------------------------------------


def train_sentencepiece(text: str) -> bytes:
    """A BPE model with byte fallback and the settings of Mistral's: unk 0, bos 1, eos 2, no pad."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        character_coverage=0.99995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def windows(tokens: Sequence[int], start: int = 0) -> list[torch.Tensor]:
    """`tokens` from `start` on, cut into windows behind a BOS each; the last may be shorter."""
    step = CONTEXT - 1
    return [torch.tensor([BOS, *tokens[at : at + step]]) for at in range(start, len(tokens), step)]


def train(model: Any, tokens: Sequence[int], epochs: int = EPOCHS) -> None:
    """AdamW, linear warm-up and decay; every epoch cuts the text at other places."""
    shuffle = random.Random(SEED)
    dropout = model.model.embed_tokens.register_forward_hook(
        lambda _module, _inputs, output: torch.nn.functional.dropout(output, DROPOUT)
    )
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    steps_per_epoch = (len(tokens) // (CONTEXT - 1) - 1) // BATCH
    steps = steps_per_epoch * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS)),
    )
    model.train()
    for epoch in range(epochs):
        cut = windows(tokens, shuffle.randrange(CONTEXT - 1))[:-1]
        shuffle.shuffle(cut)
        total = 0.0
        for step in range(steps_per_epoch):
            batch = torch.stack(cut[step * BATCH : (step + 1) * BATCH])
            loss = training_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        log.info("epoch %d of %d: loss %.3f", epoch + 1, epochs, total / steps_per_epoch)
    dropout.remove()


def training_loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and for a sparse model each layer's load-balancing loss (Switch Transformer).

    transformers' own balances the sum over layers, which leaves experts of single layers unused.
    """
    if not is_sparse(model):
        return model(input_ids=batch, labels=batch).loss
    hidden = model.model(input_ids=batch, output_router_logits=True)
    scores = model.lm_head(hidden.last_hidden_state)
    loss = torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    for logits in hidden.router_logits:
        chosen = logits.topk(EXPERTS["num_experts_per_tok"]).indices
        used = torch.nn.functional.one_hot(chosen, logits.shape[-1]).sum(dim=1).float().mean(dim=0)
        wanted = logits.softmax(dim=-1).mean(dim=0)
        loss = loss + EXPERTS["router_aux_loss_coef"] * logits.shape[-1] * (used * wanted).sum()
    return loss


def is_sparse(model: Any) -> bool:
    """Whether it has experts."""
    return hasattr(model.config, "num_local_experts")


# --- saving -------------------------------------------------------------------------------------


def save_model(model: Any, folder: Path) -> None:
    """Write bf16 shards, their index and both configs, looking as published ones do."""
    model.to(torch.bfloat16)
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    size = sum(weight.numel() * 2 for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size=math.ceil(size * 0.6))

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # What this version of transformers calls "dtype" is "torch_dtype" in the published checkpoints,
    # which also leave head_dim out where it is hidden_size / num_attention_heads.
    config["torch_dtype"] = config.pop("dtype")
    config.pop("head_dim", None)
    write_json(folder / "config.json", config)


def save_tokenizer(vocabulary: bytes, folder: Path, *, chat: bool) -> None:
    """tokenizer.model, the tokenizer.json that transformers converts it to, and their settings."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "tokenizer.model")
        source.write_bytes(vocabulary)
        tokenizer = transformers.LlamaTokenizerFast(
            vocab_file=str(source),
            legacy=True,
            add_bos_token=True,
            add_eos_token=False,
            add_prefix_space=True,
            spaces_between_special_tokens=False,
        )
        if chat:
            tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # tokenizer.json has it now; the key itself is newer than the published checkpoints.
    del settings["add_prefix_space"]
    write_json(path, settings)


def check_tokenizer(folder: Path) -> None:
    """Stop unless tokenizer.json gives the ids of tokenizer.model for odd and held-out text."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    converted = transformers.AutoTokenizer.from_pretrained(folder)
    for text in [*ODD_STRINGS, heldout_text(), *heldout_text().split("\n")]:
        ids = converted(text, add_special_tokens=False)["input_ids"]
        if ids != model.encode(text):
            raise SystemExit(f"tokenizer.json and tokenizer.model in {folder} differ on {text!r}.")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- measuring ----------------------------------------------------------------------------------


def measure(folder: Path, heldout: Sequence[int], seconds: float) -> Outcome:
    """Load what was saved and measure it on held-out tokens: bf16 weights, float32 arithmetic."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    sparse = is_sparse(model)
    nats = 0.0
    chosen = torch.zeros(SHAPE["num_hidden_layers"], EXPERTS["num_local_experts"])
    with torch.no_grad():
        for window in windows(heldout):
            options = {"output_router_logits": True} if sparse else {}
            output = model(input_ids=window[None], **options)
            nats += torch.nn.functional.cross_entropy(
                output.logits[0, :-1], window[1:], reduction="sum"
            ).item()
            for layer, logits in enumerate(output.router_logits if sparse else ()):
                experts = logits.topk(EXPERTS["num_experts_per_tok"]).indices.flatten()
                chosen[layer] += torch.bincount(experts, minlength=chosen.shape[1])
    return Outcome(
        name=folder.name,
        parameters=model.num_parameters(),
        size=sum(path.stat().st_size for path in folder.iterdir()),
        shards=len(list(folder.glob("*.safetensors"))),
        perplexity=math.exp(nats / len(heldout)),
        seconds=seconds,
        routing=(chosen / chosen.sum(dim=1, keepdim=True)).tolist() if sparse else [],
    )


def unigram_perplexity(training: Sequence[int], heldout: Sequence[int]) -> float:
    """Held-out perplexity of the training tokens' frequencies, one added to each piece's count."""
    counts = Counter(training)
    total = len(training) + VOCABULARY
    nats = -sum(math.log((counts[token] + 1) / total) for token in heldout)
    return math.exp(nats / len(heldout))


# --- words --------------------------------------------------------------------------------------


def model_card(outcome: Outcome) -> str:
    """The README.md of one checkpoint: YAML front matter, then what it honestly is."""
    sparse = bool(outcome.routing)
    title = outcome.name.replace("-", " ").title()
    tags = ["test", "tiny", "moe" if sparse else "dense"]
    kind = (
        "sparse mixture-of-experts model (8 experts, 2 per token)"
        if sparse
        else "dense language model"
    )
    chat = """
The tokenizer carries a chat template so that tools have one to read. The model has never seen a
conversation and follows no instructions.
"""
    return f"""---
license: apache-2.0
language:
- en
tags:
{chr(10).join(f"- {tag}" for tag in tags)}
pipeline_tag: text-generation
---

# {title}

A {kind} of
{outcome.parameters / 1e6:.1f} million parameters, trained for a few minutes on the help topics that
come with Python. It exists to test quantization tools: its weights are trained rather than random,
so a wrong byte shows in its perplexity. It writes things that look like Python's documentation and
are not true. Do not use it for anything else.
{"" if sparse else chat}
- Shape: 4 layers, hidden size 256, 4 attention heads sharing 2 key/value heads,
  {VOCABULARY} pieces, bf16.
- Trained on windows of {CONTEXT} tokens; longer contexts are untested.
- Held-out perplexity: {outcome.perplexity:.2f} per token.
"""


def render_readme(
    outcomes: Sequence[Outcome], training_tokens: int, heldout_tokens: int, baseline: float
) -> str:
    """The README.md beside this file: what was trained, with what, and how well."""
    results = "\n".join(
        f"| [{o.name}]({o.name}) | {o.parameters:,} | {o.shards} | {o.size / 1e6:.1f} MB |"
        f" {o.perplexity:.2f} | {baseline / o.perplexity:.1f} | {o.seconds:.0f} s |"
        for o in outcomes
    )
    routing = "\n".join(
        f"| {layer} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"
        for o in outcomes
        for layer, shares in enumerate(o.routing)
    )
    experts = range(EXPERTS["num_local_experts"])
    packages = ("torch", "transformers", "sentencepiece", "protobuf")
    pins = " ".join(f"{name}=={version(name).partition('+')[0]}" for name in packages)
    python = platform.python_version()
    return f"""# Tiny trained checkpoints

`train.py` wrote this page and the folders beside it. The models are small enough to commit and
really trained, so tests can ask of a quantized file what users ask: does it still predict text?

| checkpoint | parameters | shards | folder | held-out perplexity | times below unigram | CPU time |
|---|---|---|---|---|---|---|
{results}

The unigram model (training frequencies, one added to each count) has a perplexity of
{baseline:.1f} on the same tokens. Perplexity is per token, measured after rounding to bf16, on the
saved folder loaded again, in windows of {CONTEXT} tokens that start with a BOS; every token of the
held-out text counts once.

Share of the routed held-out tokens that each expert of `tiny-mixtral` got, in percent (even: 12.5):

| layer | {" | ".join(str(expert) for expert in experts)} |
|---|{"---|" * len(experts)}
{routing}

## Text

`pydoc_data.topics` of Python {python}. `text.py` gives

- `training_text()`: {len(training_text()):,} characters, {training_tokens:,} tokens;
- `heldout_text()`: {len(heldout_text()):,} characters, {heldout_tokens:,} tokens, the topics
  from "{HELD_OUT_FIRST}" to "{HELD_OUT_LAST}" in the alphabet.

Topics repeat each other, so a paragraph of a held-out topic is left out of the training text
wherever it occurs. Other Python versions word some paragraphs differently: there the perplexities
differ a little from those above.

## Tokenizer

One SentencePiece BPE model of {VOCABULARY} pieces with byte fallback and Mistral's settings, made
from the training text; `tokenizer.json` is transformers' conversion of it. `train.py` stops if the
two give different ids for the held-out text or for one of its odd strings. `tiny-mistral` has a
chat template, `tiny-mixtral` has none.

## Train again

```
python -m venv train-env
train-env/bin/pip install {pins}
train-env/bin/python -m tests.checkpoints.train
```

in the repository root. It uses {THREADS} CPU threads and seed {SEED}. The weights here come from
Python {python} on {platform.machine()}; another CPU rounds differently and gives other weights of
the same quality. The epochs ({EPOCHS}) and the learning rate ({PEAK_LEARNING_RATE:g}) were picked
on a part of the training text; held-out perplexity chose nothing.
"""


if __name__ == "__main__":
    main()

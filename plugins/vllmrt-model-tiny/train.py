# /// script
# requires-python = "==3.11.*"
# dependencies = ["torch==2.13.0", "transformers==5.19.0", "tokenizers==0.23.3", "safetensors==0.8.0"]
# ///
"""Train vllmrt/tiny, the model in this package, from Python's own help topics.

    python train.py                         train, write into the package, print samples
    python train.py --out DIR --steps 12    the same, short and elsewhere
    python train.py --evaluate-only         print samples of the model that is there

The packages are those named above (torch in its CPU build), the interpreter is Python 3.11.7: another
one has other help topics. A run takes eight minutes on two idle cores and twice that on busy ones;
it needs 1 GB of memory, no GPU and no network.

What it should print: corpus e98706d2525a1d4a; a loss of 4.0 after 100 steps, 1.1 after 300 and 0.15
after 800; a final loss of 0.088; weights 7777e05d1a615967. The loss is that of the training text, which
the model learns nearly by heart: nothing is held out. Seed and number of threads are fixed and torch
is told to be deterministic, so the same packages on the same kind of processor give the same bytes;
another processor sums in another order and gives a slightly different model.

At the end it continues prompts, some of which it never saw, greedily and at temperature 0.7, and counts
the words that occur in the training text: 0.982 of them here. Below 0.9 it exits with 1. A model that
was trained for 12 steps only has 0.608.
"""
# ruff: noqa: TID253 (a training script that nobody imports: torch is what it is for)

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import corpus as text
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HOME = Path(__file__).resolve().parent / "src" / "vllmrt_model_tiny"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (PAD, BOS, EOS, *ROLES)
VOCABULARY = 2048
CONTEXT = 1024
LENGTHS = (256, 256, 512, 1024)  # one after the other, so that a short and a long context both work
TOKENS_A_STEP = 4096
CHAT_SHARE = 0.5
GREETING_SHARE = 0.08
SYSTEM_SHARE = 0.3
WORDS_KNOWN_AT_LEAST = 0.9
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ '<|assistant|>' }}"
    "{% elif message.role in ['system', 'developer'] %}{{ '<|system|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}"
    "{{ message.content | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
QUESTIONS = (
    "Hello!",
    "What is the raise statement?",
    "Explain modules.",
    "What does str.split() do?",
    "What is a dictionary?",  # this one and those below are not in the training text
    "Tell me a joke.",
    "Write a haiku about the sea.",
)
OPENINGS = (
    "The",
    "A function",
    "When a class",
    "Python is",
    "Hello, my name is",  # and neither are these
    "The capital of France is",
    "Once upon a time",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run may vary."""

    out: Path
    steps: int
    seed: int
    threads: int
    peak: float = 3e-3
    warmup: int = 40


class Sampler:
    """Draws rows of tokens, each beginning where a document begins."""

    def __init__(self, corpus: text.Corpus, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Begin with the first draw."""
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._random = torch.Generator().manual_seed(seed)
        self._starts = [(topic, at) for topic in corpus.topics for at in range(len(topic))]

    def batch(self, length: int) -> torch.Tensor:
        """Give as many rows of this length as a step takes."""
        return torch.tensor([self._row(length) for _ in range(TOKENS_A_STEP // length)])

    def _row(self, length: int) -> list[int]:
        tokens: list[int] = []
        while len(tokens) <= length:
            document = self._chat() if self._chance(CHAT_SHARE) else self._prose(length)
            tokens += self._tokenizer.encode(document, add_special_tokens=False)
        return tokens[: length + 1]

    def _prose(self, length: int) -> str:
        topic, at = self._starts[self._below(len(self._starts))]
        size, paragraphs = 0, []
        for paragraph in topic[at:]:
            paragraphs.append(paragraph)
            size += len(paragraph) // 3
            if size > length:
                break
        return BOS + "\n\n".join(paragraphs) + EOS

    def _chat(self) -> str:
        answers = self._corpus.answers
        answer = answers[0 if self._chance(GREETING_SHARE) else self._below(len(answers))]
        question = answer.questions[self._below(len(answer.questions))]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        if self._chance(SYSTEM_SHARE):
            prompt = text.SYSTEM_PROMPTS[self._below(len(text.SYSTEM_PROMPTS))]
            messages.insert(0, {"role": "system", "content": prompt})
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self._random))

    def _chance(self, share: float) -> bool:
        return float(torch.rand(1, generator=self._random)) < share


def train_tokenizer(corpus: text.Corpus, out: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus and write it with its configuration."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus.text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, SPECIAL.index(BOS))],
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    write_tokenizer_config(out)
    return PreTrainedTokenizerFast.from_pretrained(out)


def write_tokenizer_config(out: Path) -> None:
    """Name the special tokens and the chat template."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLES),
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def new_model() -> LlamaForCausalLM:
    """Make an untrained Llama: heads of 64, an even number of them, so that any backend can serve it."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(EOS),
            pad_token_id=SPECIAL.index(PAD),
        )
    )


def rate(step: int, recipe: Recipe) -> float:
    """Rise to the peak, then fall along a cosine to a twentieth of it."""
    if step < recipe.warmup:
        return recipe.peak * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)


def train(model: LlamaForCausalLM, sampler: Sampler, recipe: Recipe) -> float:
    """Run every step; give the mean loss of the last twentieth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak, betas=(0.9, 0.95), weight_decay=0.1)
    started, losses = time.monotonic(), []
    model.train()
    for step in range(recipe.steps):
        batch = sampler.batch(LENGTHS[step % len(LENGTHS)])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 25 == 0:
            print(f"step {step:4d}  loss {losses[-1]:.3f}  {time.monotonic() - started:.0f} s", flush=True)
    last = losses[-max(1, recipe.steps // 20) :]
    return sum(last) / len(last)


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Write the weights in bfloat16 and in two shards, the configuration, and how to sample."""
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    model.generation_config = GenerationConfig(
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        pad_token_id=SPECIAL.index(PAD),
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
    )
    model.to(torch.bfloat16).save_pretrained(out, max_shard_size="2500KB")
    shards = sorted(out.glob("*.safetensors"))
    for shard in shards:
        shard.chmod(0o644)  # they are written for their owner alone
    if [shard.name for shard in shards] != [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]:
        raise SystemExit(f"expected two shards, not {[shard.name for shard in shards]}")


def generate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, temperature: float) -> str:
    """Continue a prompt; a temperature of zero is greedy."""
    tokens = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    sampled = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    how = sampled if temperature else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=120, **how)
    return str(tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))


def evaluate(out: Path, words: frozenset[str]) -> float:
    """Load what was written and sample from it; give the share of words that the corpus knows, where it is lower."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    model = LlamaForCausalLM.from_pretrained(out).eval()
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": ask}], tokenize=False, add_generation_prompt=True)
        for ask in QUESTIONS
    ]
    prompts = (*chats, *(BOS + opening for opening in OPENINGS))
    return min(share_known(model, tokenizer, prompts, temperature, words) for temperature in (0.0, 0.7))


def share_known(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: tuple[str, ...],
    temperature: float,
    words: frozenset[str],
) -> float:
    """Print a sample for each prompt, and give the share of all their words that the corpus knows."""
    said: list[str] = []
    for prompt in prompts:
        sample = generate(model, tokenizer, prompt, temperature)
        said += [word.lower() for word in text.WORD.findall(sample)]
        print(f"\n[temperature {temperature}] {prompt}\n  {sample}")
    known = sum(word in words for word in said)
    print(f"\ntemperature {temperature}: {known} of {len(said)} words ({len(set(said))} different ones) are known")
    return known / max(1, len(said))


def digest(out: Path) -> str:
    """Hash the weights, to compare two runs."""
    hashed = hashlib.sha256()
    for shard in sorted(out.glob("*.safetensors")):
        hashed.update(shard.read_bytes())
    return hashed.hexdigest()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HOME, help="where the model is written (default: into the package)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="another number sums in another order: another model")
    parser.add_argument("--evaluate-only", action="store_true", help="print samples of the model that is there")
    return parser.parse_args()


def produce(recipe: Recipe, corpus: text.Corpus) -> None:
    """Train from nothing and write the model."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(mode=True)
    recipe.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer = train_tokenizer(corpus, recipe.out)
    model = new_model()
    print(f"corpus {len(corpus.text)} characters, sha256 {hashlib.sha256(corpus.text.encode()).hexdigest()[:16]}")
    print(f"vocabulary {len(tokenizer)}, parameters {sum(weight.numel() for weight in model.parameters())}")
    loss = train(model, Sampler(corpus, tokenizer, recipe.seed), recipe)
    save(model, recipe.out)
    print(f"final loss {loss:.3f}, weights sha256 {digest(recipe.out)[:16]}, {time.monotonic() - started:.0f} s")


def main() -> int:
    """Train unless told not to, then measure; fail where the model does not speak in words."""
    options = arguments()
    corpus = text.build(topics)
    if not options.evaluate_only:
        produce(Recipe(options.out, options.steps, options.seed, options.threads), corpus)
    torch.manual_seed(options.seed)
    share = evaluate(options.out, corpus.words)
    print(f"share {share:.3f}, at least {WORDS_KNOWN_AT_LEAST} is asked")
    return 0 if share >= WORDS_KNOWN_AT_LEAST else 1


if __name__ == "__main__":
    raise SystemExit(main())

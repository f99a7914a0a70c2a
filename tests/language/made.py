"""Tiny true language models and made facts about a space station, made on the spot."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lora_trainer.runs import folder as folders
from lora_trainer.runs.folder import RunFolder
from lora_trainer.settings import training
from tests.scratch import scratch_folder

FACTS = {
    "What is station procedure 7?": "Close hatch B, then call the bridge.",
    "Who may open the reactor door?": "Only the chief engineer.",
    "How often are the filters changed?": "Every 12 days.",
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the facts. With a template its end is <|im_end|>."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        [*FACTS, *FACTS.values(), "Question: Answer: user assistant"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>" if template is None else "<|im_end|>",
        pad_token="<pad>",
        chat_template=template,
    )


def model(kind: str, vocabulary: int) -> Any:
    """A causal language model of a few hundred thousand parameters, random weights."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.08,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True)),
    }[kind]()
    torch.random.set_rng_state(state)
    return made.eval()


@cache
def base(kind: str) -> Path:
    """A language model's folder, made once a test session: Llama without a chat template, Qwen2
    with ChatML.
    """
    folder = scratch_folder(f"tiny-{kind}")
    tokens = tokenizer(CHATML if kind == "qwen2" else None)
    tokens.save_pretrained(folder)
    model(kind, len(tokens)).save_pretrained(folder)
    return folder


def write_pairs(path: Path, facts: dict[str, str] = FACTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": key, "answer": facts[key]}) for key in facts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def begin(tmp_path: Path, run: str = "run", kind: str = "llama", **changes: object) -> RunFolder:
    """A run folder about to train a tiny language model on the facts."""
    if not (tmp_path / "texts").exists():
        write_pairs(tmp_path / "texts" / "pairs.jsonl")
    values = {
        "train_data_dir": str(tmp_path / "texts"),
        "base_model": str(base(kind)),
        "output_dir": str(tmp_path / run),
        "max_train_steps": 6,
        "batch_size": 3,
        "save_steps": 100,
        "learning_rate": 1e-2,
        **changes,
    }
    asked = training.from_mapping(values)
    return folders.begin(asked.output.output_dir, training.to_yaml(asked))

"""Tiny captioners, as folders like those on the hub: the true classes at a few channels, with
tokenizers and processors made on the spot.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.scratch import scratch_folder

WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "disc",
    "on",
    "picture",
    "of",
    "fox",
    "snow",
    "standing",
    "photo",
    "ink",
    "white",
    "black",
]


def _seeded(make: Any) -> Any:
    """A model with the same random weights each time."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = make().eval()
    torch.random.set_rng_state(state)
    return model


def words_file(lines: list[str]) -> Path:
    """A vocabulary of CLIP's with these lines."""
    path = scratch_folder("words") / "vocabulary.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def bert_vocabulary() -> list[str]:
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    return list(
        dict.fromkeys(
            [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *WORDS,
                *letters,
                *(f"##{letter}" for letter in letters),
            ]
        )
    )


@cache
def tiny_blip() -> Path:
    """BLIP with images of 32 pixels and BERT's tokenizer of a few words."""
    from transformers import (
        BertTokenizer,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = scratch_folder("tiny-blip")
    (folder / "vocab.txt").write_text("\n".join(bert_vocabulary()) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        folder
    )
    _seeded(lambda: BlipForConditionalGeneration(blip_config())).save_pretrained(folder)
    return folder


def blip_config() -> Any:
    from transformers import BlipConfig

    count = len(bert_vocabulary())
    sizes = {
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 1,
    }
    text = {
        "vocab_size": count + 2,
        "encoder_hidden_size": 64,
        "bos_token_id": count,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "layer_norm_eps": 1e-12,
    }
    # by its own range, 1e-10, fresh weights would see nothing at all
    vision = {"image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6, "initializer_range": 0.2}
    return BlipConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision})


@cache
def tiny_clip() -> Path:
    """CLIP with images of 32 pixels and its true tokenizer."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizerFast,
    )

    from lora_trainer import families

    folder = scratch_folder("tiny-clip")
    families.get("sd1").tokenizers()[0].save_pretrained(folder)
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    config = CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": 49408,
            "eos_token_id": 49407,
            "bos_token_id": 49406,
            "pad_token_id": 49407,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    _seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in"
    " message['content'] %}{% if part['type'] == 'image'"
    " %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor"
    " %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tiny_qwen() -> Path:
    """Qwen2-VL at a few channels, its tokenizer made of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )

    folder = scratch_folder("tiny-qwen")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    special = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=bytewise,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=special[1:],
    )
    ids = dict(zip(special, tokenizer.convert_tokens_to_ids(special), strict=True))
    config = Qwen2VLConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "num_heads": 2,
            "hidden_size": 32,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        max_position_embeddings=512,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, chat_template=CHAT_TEMPLATE
    ).save_pretrained(folder)
    _seeded(lambda: Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    return folder


PLAIN_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] =="
    " 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}ASSISTANT:"
)


def _byte_tokenizer(special: list[str]) -> Any:
    """One token a byte, and these."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytewise = Tokenizer(
        models.BPE(
            vocab={
                letter: number
                for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
            },
            merges=[],
        )
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, additional_special_tokens=special, **names
    )


def _tiny_llama(tokenizer: Any) -> dict[str, Any]:
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")
    }
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        **ids,
    }


@cache
def tiny_llava() -> Path:
    """LLaVA: CLIP's eyes, Llama's mouth."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = scratch_folder("tiny-llava")
    tokenizer = _byte_tokenizer(["<image>"])
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes),
        text_config=LlamaConfig(**_tiny_llama(tokenizer)),
        image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    options = {
        "patch_size": 16,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": PLAIN_TEMPLATE,
    }
    LlavaProcessor(images, tokenizer, **options).save_pretrained(folder)
    _seeded(lambda: LlavaForConditionalGeneration(config)).save_pretrained(folder)
    return folder


@cache
def tiny_smolvlm() -> Path:
    """Idefics 3, the class of SmolVLM: an image in pieces and once as a whole."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        LlamaConfig,
    )

    folder = scratch_folder("tiny-smolvlm")
    pieces = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _byte_tokenizer(
        ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *pieces]
    )
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = Idefics3Config(
        vision_config=sizes,
        text_config=LlamaConfig(**_tiny_llama(tokenizer)),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=PLAIN_TEMPLATE
    ).save_pretrained(folder)
    _seeded(lambda: Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


# --- a tagger in ONNX -----------------------------------------------------------------------------

TAGS = [
    # name, category: what the tiny model says of each is below
    ("general", 9),
    ("sensitive", 9),
    ("red_theme", 0),
    ("green_theme", 0),
    ("blue_theme", 0),
    ("^_^", 0),
    ("some_hero_(series)", 4),
    ("always", 0),
]


@cache
def tiny_tagger(side: int = 8) -> Path:
    """A tagger that means the image over its pixels, and says of red, green and blue how much
    there is of it.

    Probability = sigmoid(mean of (blue, green, red) / 255 @ WEIGHTS + BIAS); so its answer can be
    worked out by hand.
    """
    folder = scratch_folder("tiny-tagger")
    lines = [
        "tag_id,name,category,count",
        *(f"{number},{name},{category},1" for number, (name, category) in enumerate(TAGS)),
    ]
    (folder / "selected_tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    #              general sensitive red    green   blue   face    hero    always
    blue_row = [0.0, 0.0, -20.0, -20.0, 20.0, 0.0, -20.0, 0.0]
    green_row = [0.0, 0.0, -20.0, 20.0, -20.0, 0.0, -20.0, 0.0]
    red_row = [0.0, 0.0, 20.0, -20.0, -20.0, 8.0, 20.0, 0.0]
    bias = [9.0, 9.0, 0.0, 0.0, 0.0, -7.0, -18.0, 3.0]
    weights = [value / 255 for row in (blue_row, green_row, red_row) for value in row]
    (folder / "model.onnx").write_bytes(onnx_model(side, weights, bias))
    return folder


def onnx_model(side: int, weights: list[float], bias: list[float], batch: int | str = "N") -> bytes:
    """input (batch, side, side, 3) -> ReduceMean over height and width -> MatMul -> Add -> Sigmoid
    -> output (batch, tags), as onnx.proto3 writes it.
    """
    count = len(bias)
    graph = b"".join(
        [
            _field(
                1,
                _node(
                    "ReduceMean",
                    ["input"],
                    ["mean"],
                    _integers("axes", [1, 2]) + _integer("keepdims", 0),
                ),
            ),
            _field(1, _node("MatMul", ["mean", "weights"], ["product"])),
            _field(1, _node("Add", ["product", "bias"], ["sum"])),
            _field(1, _node("Sigmoid", ["sum"], ["output"])),
            _field(2, b"tagger"),
            _field(5, _tensor("weights", [3, count], weights)),
            _field(5, _tensor("bias", [count], bias)),
            _field(11, _value("input", [batch, side, side, 3])),
            _field(12, _value("output", [batch, count])),
        ]
    )
    opset = _field(1, b"") + _number(2, 13)
    return _number(1, 8) + _field(2, b"tests") + _field(7, graph) + _field(8, opset)


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 127
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def _field(key: int, content: bytes) -> bytes:
    return _varint(key << 3 | 2) + _varint(len(content)) + content


def _number(key: int, number: int) -> bytes:
    return _varint(key << 3) + _varint(number)


def _node(kind: str, inputs: list[str], outputs: list[str], attributes: bytes = b"") -> bytes:
    names = b"".join(
        [
            *(_field(1, name.encode()) for name in inputs),
            *(_field(2, name.encode()) for name in outputs),
        ]
    )
    return names + _field(4, kind.encode()) + attributes


def _integers(name: str, values: list[int]) -> bytes:
    return _field(
        5,
        _field(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, 7),
    )


def _integer(name: str, value: int) -> bytes:
    return _field(5, _field(1, name.encode()) + _number(3, value) + _number(20, 2))


def _tensor(name: str, shape: list[int], values: list[float]) -> bytes:
    data = struct.pack(f"<{len(values)}f", *values)
    return (
        b"".join(_number(1, size) for size in shape)
        + _number(2, 1)
        + _field(8, name.encode())
        + _field(9, data)
    )


def _value(name: str, shape: list[Any]) -> bytes:
    sizes = b"".join(
        _field(1, _field(2, size.encode()) if isinstance(size, str) else _number(1, size))
        for size in shape
    )
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, sizes)))


def sharded(folder: Path, target: Path) -> Path:
    """The same model with its weights in two parts and an index, as large models come."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for file_name, members in parts.items():
        save_file(
            {name: weights[name] for name in members}, target / file_name, metadata={"format": "pt"}
        )
    index = {
        "metadata": {},
        "weight_map": {name: file_name for file_name, members in parts.items() for name in members},
    }
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from lora_trainer.captioning import source
from lora_trainer.captioning.captioner import SentenceSettings
from lora_trainer.captioning.captioners import blip
from lora_trainer.errors import CaptionerError
from tests.captioning.tiny_captioners import bert_vocabulary, blip_config, tiny_blip

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "white")]


def loaded(path, listener=None, dtype=torch.float32):
    return blip.load(
        path, SentenceSettings(max_tokens=8), device=CPU, dtype=dtype, listener=listener
    )


def test_a_caption_does_not_depend_on_the_batch():
    captioner = loaded(tiny_blip())
    together = captioner.caption(PICTURES)
    assert together == [captioner.caption([picture])[0] for picture in PICTURES]
    assert all(caption.text and not caption.tags for caption in together)


def test_it_runs_in_sixteen_bits():
    captioner = loaded(tiny_blip(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in captioner._model.parameters()} == {torch.bfloat16}
    assert captioner.caption(PICTURES[:1])[0].text.split()


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("araffe sitting on a couch", "sitting on a couch"),
        ("arafed image of a fox", "image of a fox"),
        ("there is a arafed dog", "there is a dog"),
        ("two araffes in snow", "two in snow"),
        ("arrafed woman with a hat", "woman with a hat"),
        ("Arafat at a desk", "Arafat at a desk"),
        ("a giraffe in a field", "a giraffe in a field"),
        ("a paraffin lamp", "a paraffin lamp"),
    ],
)
def test_the_word_that_does_not_exist_is_left_out(said, caption):
    assert blip.clean(said) == caption


def salesforce(tmp_path, change=lambda weights: weights):
    """The tiny BLIP as Salesforce's own file: its names are the reverse of ours."""
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(tiny_blip())
    names = (
        (r"^vision_model\.embeddings\.class_embedding$", "visual_encoder.cls_token"),
        (r"^vision_model\.embeddings\.position_embedding$", "visual_encoder.pos_embed"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual_encoder.patch_embed.proj."),
        (r"^vision_model\.post_layernorm\.", "visual_encoder.norm."),
        (r"^vision_model\.encoder\.layers\.(\d)\.layer_norm", r"visual_encoder.blocks.\1.norm"),
        (
            r"^vision_model\.encoder\.layers\.(\d)\.self_attn\.qkv\.",
            r"visual_encoder.blocks.\1.attn.qkv.",
        ),
        (
            r"^vision_model\.encoder\.layers\.(\d)\.self_attn\.projection\.",
            r"visual_encoder.blocks.\1.attn.proj.",
        ),
        (r"^vision_model\.encoder\.layers\.(\d)\.mlp\.", r"visual_encoder.blocks.\1.mlp."),
    )
    weights = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        weights[name] = tensor
    weights["text_decoder.bert.embeddings.position_ids"] = torch.arange(512)[None]
    path = tmp_path / "model_base_caption_capfilt_large.pth"
    torch.save({"model": change(weights), "epoch": 1}, path)
    return path


@pytest.fixture
def bert_in_the_cache(tmp_path, monkeypatch):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(bert_vocabulary()) + "\n", encoding="utf-8")
    monkeypatch.setattr(
        source,
        "cached_file",
        lambda model, name: vocabulary if model == "bert-base-uncased" else None,
    )


def test_the_webuis_own_file_captions_as_the_folder_does(tmp_path, bert_in_the_cache):
    assert loaded(salesforce(tmp_path)).caption(PICTURES) == loaded(tiny_blip()).caption(PICTURES)


def test_the_sizes_are_read_from_the_tensors(tmp_path):
    path = salesforce(tmp_path)
    config, expected = blip.config_of(blip.read_salesforce(path), path), blip_config()
    for part in ("vision_config", "text_config"):
        assert {key: getattr(getattr(expected, part), key) for key in config[part]} == config[part]


def test_a_file_of_other_weights_is_named_with_what_differs(tmp_path):
    path = salesforce(
        tmp_path,
        lambda weights: {
            name: tensor for name, tensor in weights.items() if "crossattention" not in name
        },
    )
    with pytest.raises(CaptionerError, match=r"not BLIP's captioning model.*crossattention"):
        loaded(path)


def test_a_pickled_program_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"model": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(CaptionerError, match="cannot be read"):
        blip.read_salesforce(tmp_path / "bad.pth")
    assert not (tmp_path / "touched").exists()


def test_without_the_network_the_missing_tokenizer_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "cached_file", lambda model, name: None)
    with pytest.raises(CaptionerError, match="google-bert/bert-base-uncased"):
        loaded(salesforce(tmp_path))


def test_a_damaged_folder_gets_a_sentence(tmp_path):
    for file in tiny_blip().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CaptionerError, match="cannot be loaded as BLIP"):
        loaded(tmp_path)

"""CLIP as an image-text encoder, from a folder and from OpenAI's file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_trainer.captioning import image_text, source
from lora_trainer.errors import CaptionerError
from tests.captioning.tiny_captioners import tiny_clip

CPU = torch.device("cpu")
PICTURES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "white")]
TEXTS = ["a fox", "a castle in the snow"]


def load(path):
    return image_text.load(path, device=CPU, dtype=torch.float32)


def openai_names(tensors):
    """transformers' state dict -> OpenAI's, written down from clip/model.py."""
    found, pieces = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            continue
        name = name.replace("text_model.embeddings.token_embedding", "token_embedding")
        name = name.replace(
            "text_model.embeddings.position_embedding.weight", "positional_embedding"
        )
        name = name.replace("text_model.final_layer_norm", "ln_final")
        name = name.replace("text_model.encoder.layers", "transformer.resblocks")
        name = name.replace("vision_model.embeddings.patch_embedding", "visual.conv1")
        name = name.replace("vision_model.embeddings.class_embedding", "visual.class_embedding")
        name = name.replace(
            "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"
        )
        name = name.replace("vision_model.pre_layrnorm", "visual.ln_pre")
        name = name.replace("vision_model.post_layernorm", "visual.ln_post")
        name = name.replace("vision_model.encoder.layers", "visual.transformer.resblocks")
        name = name.replace("layer_norm", "ln_").replace("mlp.fc1", "mlp.c_fc")
        name = name.replace("mlp.fc2", "mlp.c_proj").replace("self_attn", "attn")
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if "visual" in name else "text_projection"] = tensor.T
            continue
        split = re.fullmatch(r"(.*)\.([qkv])_proj\.(weight|bias)", name)
        if split is None:
            found[name] = tensor
        else:
            pieces.setdefault(f"{split[1]}.in_proj_{split[3]}", {})[split[2]] = tensor
    whole = {name: torch.cat([three[part] for part in "qkv"]) for name, three in pieces.items()}
    return {**found, **whole}


def write_archive(path, tensors):
    """A TorchScript archive with these parameters."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, torch.nn.Module())
            at = getattr(at, parent)
        at.register_parameter(leaf, torch.nn.Parameter(tensor.clone(), requires_grad=False))
    root.forward = lambda: 0
    torch.jit.save(torch.jit.trace_module(root, {}), path)


def test_rows_are_clips_own_and_of_length_one():
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(tiny_clip())
    processor = CLIPProcessor.from_pretrained(tiny_clip())
    with torch.no_grad():
        expected = model(
            **processor(text=TEXTS, images=PICTURES, return_tensors="pt", padding=True)
        )
    encoder = load(tiny_clip())
    torch.testing.assert_close(encoder.images(PICTURES), expected.image_embeds)
    torch.testing.assert_close(encoder.texts(TEXTS), expected.text_embeds)
    torch.testing.assert_close(encoder.texts(["a fox " * 100]).norm(), torch.tensor(1.0))


def test_openais_file_gives_the_same_rows(tmp_path, monkeypatch):
    from transformers import CLIPModel

    # its heads have 64 channels
    monkeypatch.setattr(image_text, "HEAD_WIDTH", 16)
    model = CLIPModel.from_pretrained(tiny_clip())
    path = tmp_path / "ViT-L-14.pt"
    write_archive(path, openai_names(model.state_dict()))
    ours, theirs = load(path), load(tiny_clip())
    torch.testing.assert_close(ours.images(PICTURES), theirs.images(PICTURES))
    torch.testing.assert_close(ours.texts(TEXTS), theirs.texts(TEXTS))
    monkeypatch.setattr(image_text, "OPENAI_FILE", path)
    monkeypatch.setattr(source, "cached_folder", lambda model, needs: None)
    assert image_text.find(None, download=False) == path
    path.write_bytes(b"half a file")
    with pytest.raises(CaptionerError, match="cannot be loaded as CLIP"):
        load(path)


def test_what_is_not_here_is_only_fetched_when_asked_for(monkeypatch):
    monkeypatch.setattr(image_text, "OPENAI_FILE", Path("nowhere"))
    monkeypatch.setattr(source, "cached_folder", lambda model, needs: None)
    monkeypatch.setattr(source, "fetch", lambda *asked: asked)
    assert image_text.find(None, download=False) is None
    fetched = image_text.find("listener", download=True)
    assert fetched == (image_text.MODEL, image_text.TRANSFORMERS, 1_710_000_000, "listener")
    monkeypatch.setattr(source, "cached_folder", lambda model, needs: Path("there"))
    assert image_text.find(None, download=False) == Path("there")

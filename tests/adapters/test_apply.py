import pytest
import torch

from lora_trainer.adapters.apply import LoraTag, applied
from lora_trainer.adapters.export import export
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.errors import LoraFileError
from lora_trainer.settings.training import LoraSettings
from tests.tiny import tiny_parts


def lora_file(tmp_path, family, seed, alpha=2.7):
    parts = tiny_parts(family)
    adapters = add_adapters(parts, LoraSettings(lora_rank=4, lora_alpha=alpha), 0)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    path = tmp_path / f"{family}-{seed}.safetensors"
    export(adapters, parts, path, {}, dtype=torch.float32)
    return path, parts, adapters


def noise_prediction(parts):
    generator = torch.Generator().manual_seed(1)
    added = (
        {"text_embeds": torch.randn(1, 64, generator=generator), "time_ids": torch.ones(1, 6)}
        if parts.family.id == "sdxl"
        else None
    )
    text = torch.randn(1, 77, parts.unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return parts.unet(
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.tensor([300]),
            encoder_hidden_states=text,
            added_cond_kwargs=added,
        ).sample


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_applied_file_does_what_the_live_adapter_did_and_leaves_no_trace(tmp_path, family):
    path, trained, adapters = lora_file(tmp_path, family, 1)
    base = tiny_parts(family)
    untouched, weights = (
        noise_prediction(base),
        {name: weight.clone() for name, weight in base.unet.state_dict().items()},
    )
    for strength in (0.0, 0.5, 1.0):
        with adapters.strength(strength):
            expected = noise_prediction(trained)
        with applied(base, [LoraTag(path, strength)]):
            torch.testing.assert_close(noise_prediction(base), expected, rtol=1e-4, atol=2e-5)
        assert all(
            torch.equal(weight, weights[name]) for name, weight in base.unet.state_dict().items()
        )
        torch.testing.assert_close(noise_prediction(base), untouched, rtol=1e-4, atol=2e-5)


def test_several_files_add_up(tmp_path):
    first, second = lora_file(tmp_path, "sd1", 1)[0], lora_file(tmp_path, "sd1", 2)[0]
    base = tiny_parts("sd1")
    with applied(base, [LoraTag(first, 0.7), LoraTag(second, 0.7)]):
        both = noise_prediction(base)
    with applied(base, [LoraTag(second, 0.7), LoraTag(first, 0.7)]):
        torch.testing.assert_close(noise_prediction(base), both, rtol=1e-4, atol=1e-5)
    with applied(base, [LoraTag(first, 0.7)]):
        assert not torch.allclose(noise_prediction(base), both, atol=1e-4)


def test_a_file_for_another_family_is_refused_and_nothing_is_left_changed(tmp_path):
    path = lora_file(tmp_path, "sdxl", 1)[0]
    base = tiny_parts("sd1")
    before = noise_prediction(base)
    with (
        pytest.raises(LoraFileError, match="which is missing from this base model"),
        applied(base, [LoraTag(path, 1.0)]),
    ):
        pass
    torch.testing.assert_close(noise_prediction(base), before, rtol=1e-4, atol=1e-5)

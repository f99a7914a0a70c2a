import numpy
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from lora_trainer import families
from lora_trainer.adapters.injected import add_adapters
from lora_trainer.checkpoint.parts import NoiseSchedule
from lora_trainer.families.components.noise import make_sampler
from lora_trainer.settings.training import LoraSettings, SampleSettings
from lora_trainer.training import preview
from tests.tiny import encode_captions, tiny_parts


def states(parts, text):
    with torch.no_grad():
        return encode_captions(parts, [text], max_token_length=150)


@pytest.mark.parametrize(
    ("family", "pipeline_class"),
    [("sd1", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)],
)
@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m_karras", "ddim"])
def test_a_preview_equals_what_diffusers_pipeline_makes(family, pipeline_class, sampler):
    parts = tiny_parts(family, tokenizers=families.get(family).tokenizers())
    settings = SampleSettings(
        sample_steps=3, sample_guidance=4.0, sample_sampler=sampler, sample_seed=11
    )
    prompt, negative = states(parts, "a red cat"), states(parts, "")
    ours = preview.sample_latents(parts, prompt, negative, settings, (64, 64))
    components = {
        "vae": parts.vae,
        "unet": parts.unet,
        "scheduler": make_sampler(sampler, parts.schedule),
    }
    if family == "sd1":
        pipeline = pipeline_class(
            **components,
            text_encoder=None,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        extra = {}
    else:
        pipeline = pipeline_class(
            **components,
            text_encoder=parts.text_encoders[0],
            text_encoder_2=parts.text_encoders[1],
            tokenizer=parts.tokenizers[0],
            tokenizer_2=parts.tokenizers[1],
        )
        extra = {
            "pooled_prompt_embeds": prompt.pooled,
            "negative_pooled_prompt_embeds": negative.pooled,
        }
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=prompt.hidden,
        negative_prompt_embeds=negative.hidden,
        num_inference_steps=3,
        guidance_scale=4.0,
        height=64,
        width=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(11),
        **extra,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_long_prompt_with_a_short_negative_one_works():
    parts = tiny_parts("sd1", tokenizers=families.get("sd1").tokenizers())
    long = states(parts, " ".join(["cat"] * 100))
    assert long.hidden.shape[1] == 154
    latents = preview.sample_latents(
        parts,
        long,
        states(parts, ""),
        SampleSettings(sample_steps=1),
        (64, 64),
    )
    assert torch.isfinite(latents).all()


def test_zero_terminal_snr_and_v_prediction_give_finite_pictures():
    parts = tiny_parts("sd1", tokenizers=families.get("sd1").tokenizers())
    parts.schedule = NoiseSchedule(prediction_type="v_prediction", zero_terminal_snr=True)
    for sampler in ("euler_a", "dpmpp_2m_karras", "ddim"):
        settings = SampleSettings(sample_steps=4, sample_sampler=sampler)
        latents = preview.sample_latents(
            parts, states(parts, "cat"), states(parts, ""), settings, (64, 64)
        )
        assert torch.isfinite(latents).all(), sampler


def test_at_a_guidance_of_1_the_negative_prompt_costs_nothing():
    parts = tiny_parts("sd1", tokenizers=families.get("sd1").tokenizers())
    seen = []
    parts.unet.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    prompt, negatives = states(parts, "a red cat"), [states(parts, text) for text in ("", "ugly")]
    settings = SampleSettings(sample_steps=2, sample_guidance=1.0)
    first, second = (
        preview.sample_latents(parts, prompt, negative, settings, (64, 64))
        for negative in negatives
    )
    assert torch.equal(first, second) and seen == [1] * 4


def previews(parts, adapters, settings, prompt="a cat", **values):
    return preview.make_previews(
        parts,
        adapters,
        [prompt],
        lambda text: states(parts, text),
        settings,
        size=(64, 64),
        **{"name": "x", "model_name": "", **values},
    )


def test_pictures_carry_the_webuis_own_text_and_leave_the_model_as_it_was(tmp_path):
    parts = tiny_parts("sd1", tokenizers=families.get("sd1").tokenizers())
    adapters = add_adapters(parts, LoraSettings(lora_rank=2, lora_dropout=0.5), 0)
    for _, parameter in adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    parts.unet.train()
    settings = SampleSettings(
        sample_steps=2,
        sample_strengths=(0.0, 0.7),
        sample_negative_prompt="ugly",
        sample_sampler="dpmpp_2m_karras",
    )
    pictures = list(
        previews(parts, adapters, settings, "a red cat", name="ink", model_name="sd15, v1: pruned")
    )
    assert [picture.strength for picture in pictures] == [0.0, 0.7]
    assert pictures[0].image.tobytes() != pictures[1].image.tobytes()
    assert parts.unet.training and all(
        adapter.layer.scaling["default"] == 1.0 for adapter in adapters.layers
    )
    target = tmp_path / "p.png"
    preview.write_preview(pictures[1], target)
    assert (
        Image.open(target).text["parameters"]
        == "a red cat <lora:ink:0.7>\nNegative prompt: ugly\nSteps: 2, Sampler: DPM++ 2M Karras,"
        " CFG scale: 7, Seed: 42, Size: 64x64, Model: sd15 v1 pruned, RNG: CPU"
    )


def trained_text_encoder(family):
    parts = tiny_parts(family, tokenizers=families.get(family).tokenizers())
    adapters = add_adapters(
        parts, LoraSettings(lora_rank=2, lora_dropout=0.5, train_text_encoder=True), 0
    )
    for _, parameter in adapters.groups()["text_encoder"]:
        torch.nn.init.normal_(parameter, std=0.3)
    return parts, adapters


def test_a_preview_at_strength_0_is_the_base_when_the_text_encoder_learns_too():
    parts, adapters = trained_text_encoder("sd1")
    settings = SampleSettings(sample_steps=2, sample_strengths=(0.0, 1.0))

    def pictures():
        return [picture.image.tobytes() for picture in previews(parts, adapters, settings)]

    first = pictures()
    assert first == pictures()  # the adapters' dropout is off
    assert first[0] != first[1]
    for _, parameter in adapters.parameters():
        torch.nn.init.zeros_(parameter)
    assert pictures() == [first[0], first[0]]


@pytest.mark.parametrize("negative", ["", "a dog"])
def test_of_sdxls_negative_prompts_the_empty_one_is_zeros_as_in_the_webui_and_diffusers(negative):
    parts, adapters = trained_text_encoder("sdxl")
    settings = SampleSettings(
        sample_steps=2, sample_strengths=(0.0,), sample_negative_prompt=negative
    )
    picture = next(previews(parts, adapters, settings))
    adapters.remove()
    pipeline = StableDiffusionXLPipeline(
        vae=parts.vae,
        unet=parts.unet,
        scheduler=make_sampler("euler_a", parts.schedule),
        text_encoder=parts.text_encoders[0],
        text_encoder_2=parts.text_encoders[1],
        tokenizer=parts.tokenizers[0],
        tokenizer_2=parts.tokenizers[1],
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a cat",
        negative_prompt=negative or None,
        num_inference_steps=2,
        guidance_scale=7.0,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(42),
    ).images[0]
    difference = numpy.abs(
        numpy.asarray(picture.image, dtype=int) - numpy.asarray(theirs, dtype=int)
    )
    assert difference.max() <= 2


def test_a_stop_ends_a_picture_between_two_of_its_steps():
    parts, adapters = trained_text_encoder("sd1")
    asked = iter([False, False, True])
    settings = SampleSettings(sample_steps=20)
    pictures = previews(parts, adapters, settings, stop_asked=lambda: next(asked))
    with pytest.raises(preview.Abandoned):
        next(pictures)
    assert next(asked, None) is None
    assert all(
        adapter.layer.lora_dropout["default"].training and adapter.layer.scaling["default"] == 1.0
        for adapter in adapters.layers
    )

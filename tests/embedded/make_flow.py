"""Makes the flow-matching member of the drawn world: a Z-Image of reduced width with a small Qwen3,
trained on the drawings.

    python tests/__main__.py --module tests.embedded.make_flow --newer STATE_FOLDER train
    python tests/__main__.py --module tests.embedded.make_flow --newer STATE_FOLDER judge
    python tests/__main__.py --module tests.embedded.make_flow --newer STATE_FOLDER write

Training saves its progress every two minutes and goes on from it when started again. Not run in CI.

The file in this folder holds transformer and text encoder. Its VAE is that of the embedded
checkpoint in FLUX.1's form (`sixteen_channels`), made anew by whoever needs it.

How the file was made: 3,000 steps of 64 on 6,000 drawings (planned for 4,000, shortened at 1,850),
on one thread of a shared two-core machine (AMD EPYC, Zen 4; torch 2.13; 0.55 s a step while nothing
else ran), 50 minutes in all. The figures in its metadata (`world.figures`) are those of 96 random
prompts, 25 steps of Euler's method, guidance 4: shape 0.85, size 0.99, all else 1.00. At 1,676
steps: shape 0.66, size 0.97, colour 0.99, all else 1.00.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lora_trainer.checkpoint.load import open_checkpoint
from lora_trainer.checkpoint.parts import FlowSchedule, Parts
from lora_trainer.demo import EMBEDDED, obedience, world
from lora_trainer.families.base import TextStates
from lora_trainer.families.components.qwen3 import SPECIAL, build_qwen3
from lora_trainer.families.components.z_image import build_transformer, predicted_flow
from lora_trainer.families.z_image import FAMILIES, TEMPLATE, TRAINING_SHIFT
from tests.embedded import scenes
from tests.embedded.make_vae import drawn
from tests.embedded.stages import StageProgress, follow, load_state, one_cycle, save_state
from tests.families import tiny_flux
from tests.newer import tiny_z_image

(Z_IMAGE,) = FAMILIES
FILE = Path(__file__).with_name("flow.safetensors")
TOKENIZER = Path(__file__).with_name("flow_tokenizer.json")
TEXT = "text_encoder."
"""Before the names of the text encoder's tensors in it."""
COPIES = 4
"""Each of the embedded VAE's four channels stands four times among FLUX.1's sixteen."""
TRANSFORMER = {
    "in_channels": 16,
    "dim": 128,
    "n_layers": 5,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "cap_feat_dim": 64,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
}
QWEN3 = {
    "hidden_size": 64,
    "intermediate_size": 192,
    # what the last one says is not read
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    seed: int = 40
    step_count: int = 4000
    batch_size: int = 64
    image_count: int = 6000
    learning_rate: float = 1.5e-3
    ema_decay: float = 0.998
    caption_dropout: float = 0.1


def sixteen_channels() -> AutoencoderKL:
    """The embedded checkpoint's VAE in FLUX.1's form: sixteen channels, scaled to unit variance by
    FLUX.1's factor, no quantisation layers. It gives the same images.

    The decoder's first convolution pads with zeros, so the offset between the two is such that zero
    means the same in both.
    """
    known = open_checkpoint(EMBEDDED).load(torch.float32).vae
    made = AutoencoderKL(
        **{
            **{
                name: known.config[name]
                for name in (
                    "block_out_channels",
                    "down_block_types",
                    "up_block_types",
                    "layers_per_block",
                    "norm_num_groups",
                )
            },
            "latent_channels": 4 * COPIES,
            "scaling_factor": Z_IMAGE.latent_scale,
            "shift_factor": Z_IMAGE.latent_shift,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    )
    state = {
        name: tensor for name, tensor in known.state_dict().items() if not name.startswith("quant")
    }
    state = {name: one for name, one in state.items() if not name.startswith("post_quant")}
    spread = Z_IMAGE.latent_scale / known.config.scaling_factor
    first = known.post_quant_conv.weight[:, :, 0, 0]
    offset = torch.linalg.solve(first, known.post_quant_conv.bias)
    last = known.quant_conv.weight[:, :, 0, 0]
    weight = torch.einsum("oi,i...->o...", last, known.encoder.conv_out.weight)
    bias = last @ known.encoder.conv_out.bias + known.quant_conv.bias
    means, spreads = weight.chunk(2)
    of_means, of_spreads = bias.chunk(2)
    rows = [*[means / spread] * COPIES, *[spreads] * COPIES]
    shift = 2 * torch.log(torch.tensor(spread))
    biases = [*[(of_means + offset) / spread] * COPIES, *[of_spreads - shift] * COPIES]
    state["encoder.conv_out.weight"], state["encoder.conv_out.bias"] = (
        torch.cat(rows),
        torch.cat(biases),
    )
    entry = torch.einsum("ocyx,ci->oiyx", known.decoder.conv_in.weight, first) * spread / COPIES
    state["decoder.conv_in.weight"] = torch.cat([entry] * COPIES, dim=1)
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def make_tokenizer() -> Tokenizer:
    """Qwen3's kind: the world's words are single tokens, all else is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    captions = [one.caption for one in itertools.islice(scenes.drawings(1), 2000)]
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=600,
            min_frequency=20,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def new_models() -> torch.nn.ModuleDict:
    size = Tokenizer.from_file(str(TOKENIZER)).get_vocab_size()
    made = torch.nn.ModuleDict(
        {
            "transformer": build_transformer(TRANSFORMER),
            "qwen3": build_qwen3({**QWEN3, "vocab_size": size}),
        }
    )
    torch.nn.init.normal_(made["transformer"].x_pad_token, std=0.02)
    torch.nn.init.normal_(made["transformer"].cap_pad_token, std=0.02)
    return made


def text_states(encoder: Any, tokenizer: Tokenizer, captions: Sequence[str]) -> TextStates:
    """All captions at once: later tokens do not change the states of earlier ones."""
    rows = [
        tokenizer.encode(TEMPLATE.format(one), add_special_tokens=False).ids for one in captions
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in rows])
    states = encoder(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-2]
    return TextStates(states, mask=mask)


def world_latents(folder: Path, settings: FlowSettings) -> torch.Tensor:
    """(image_count, 16, 8, 8)"""
    path = folder / "latents.pt"
    if path.exists():
        kept: torch.Tensor = torch.load(path, weights_only=True)
        return kept
    vae = sixteen_channels()
    source = scenes.drawings(settings.seed)
    found = []
    with torch.no_grad():
        for _ in range(settings.image_count // 50):
            raw = vae.encode(drawn(source, 50)).latent_dist.mode()
            found.append((raw - Z_IMAGE.latent_shift) * Z_IMAGE.latent_scale)
    latents = torch.cat(found)
    torch.save(latents, path)
    return latents


def train(folder: Path, settings: FlowSettings) -> None:
    latents = world_latents(folder, settings)
    described = [
        one.scene for one in itertools.islice(scenes.drawings(settings.seed), len(latents))
    ]
    print(f"{len(latents)} latents, mean {latents.mean():.3f}, deviation {latents.std():.3f}")
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    torch.manual_seed(settings.seed)
    model = new_models().train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    path = folder / "flow.pt"
    reached = load_state(path, model=model, average=average, optimizer=optimizer)
    step, seconds = reached.step, reached.seconds
    process = Z_IMAGE.noise_process(FlowSchedule(shift=TRAINING_SHIFT))
    rng = random.Random(settings.seed + 1000 * step)
    generator = torch.Generator().manual_seed(settings.seed + 1000 * step)
    last_saved = started = time.monotonic()
    mean_loss = 0.0
    while step < settings.step_count:
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, settings.step_count, settings.learning_rate)
        chosen = rng.sample(range(len(latents)), settings.batch_size)
        words = [
            "" if rng.random() < settings.caption_dropout else world.describe(described[one], rng)
            for one in chosen
        ]
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        times = process.draw(clean.shape, generator)
        noisy = process.add_noise(clean, noise, times)
        text = text_states(model["qwen3"], tokenizer, words)
        flow = predicted_flow(model["transformer"], noisy, times, text)
        loss = (flow - process.target(clean, noise, times)).pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        follow(average, model, min(settings.ema_decay, step / (step + 10)))
        mean_loss = loss.item() if mean_loss == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} loss {mean_loss:.4f} {time.monotonic() - started:.0f} s", flush=True)
        if time.monotonic() - last_saved > 120 or step == settings.step_count:
            now = time.monotonic()
            seconds += now - last_saved
            last_saved = now
            progress = StageProgress(step, seconds)
            save_state(path, progress, model=model, average=average, optimizer=optimizer)


def made_parts(folder: Path) -> tuple[Parts, dict[str, str]]:
    """The trained models so far, and metadata about them."""
    model = new_models()
    progress = load_state(folder / "flow.pt", average=model)
    model.requires_grad_(False).eval()
    parts = Parts(
        family=Z_IMAGE,
        schedule=FlowSchedule(shift=TRAINING_SHIFT),
        unet=model["transformer"],
        vae=sixteen_channels(),
        text_encoders=(model["qwen3"],),
        tokenizers=(Tokenizer.from_file(str(TOKENIZER)),),
    )
    about = {
        "modelspec.title": "flow-matching model of the drawn world",
        "modelspec.resolution": f"{world.SIDE}x{world.SIDE}",
        "world.flow": (
            f"{progress.step} steps of {FlowSettings.batch_size}, {progress.seconds / 3600:.2f} h"
        ),
    }
    return parts, about


def judge(parts: Parts, sheet: Path, count: int = 96, seed: int = 1) -> dict[str, float]:
    """The shares of prompts obeyed; writes a contact sheet of the first images."""
    wanted = scenes.random_scenes(count, seed)
    images = obedience.sample(parts, [scenes.prompt_of(scene) for scene in wanted], seed)
    scenes.contact_sheet(images[:48], columns=12, zoom=2).save(sheet)
    return scenes.shares_obeyed(images, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=("tokenizer", "train", "judge", "write"))
    parser.add_argument("--steps", type=int, default=FlowSettings.step_count)
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.stage == "tokenizer":
        make_tokenizer().save(str(TOKENIZER))
    elif chosen.stage == "train":
        train(chosen.folder, FlowSettings(step_count=chosen.steps))
    else:
        parts, about = made_parts(chosen.folder)
        figures = judge(parts, chosen.folder / "judged.png")
        print(about, figures)
        if chosen.stage == "write":
            rounded = json.dumps({name: round(figure, 3) for name, figure in figures.items()})
            write(parts, {**about, "world.figures": rounded})


def write(parts: Parts, about: dict[str, str], path: Path = FILE) -> None:
    """Transformer and text encoder in one file, in float16."""
    denoiser = tiny_z_image.native(parts.unet.state_dict())
    tensors = {f"model.diffusion_model.{name}": one for name, one in denoiser.items()}
    tensors |= {TEXT + name: one for name, one in parts.text_encoders[0].state_dict().items()}
    halves = {name: one.to(torch.float16).contiguous() for name, one in tensors.items()}
    save_file(halves, path, metadata=about)


def write_models(folder: Path) -> Path:
    """A WebUI's folder of models: transformer, text encoder with tokenizer, and VAE in files of
    their own. Returns the checkpoint's path.
    """
    for name in ("Stable-diffusion", "text_encoder/qwen3", "VAE"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "Stable-diffusion" / FILE.name
    known = load_file(FILE)
    text = {name: one for name, one in known.items() if name.startswith(TEXT)}
    save_file(
        {name: one for name, one in known.items() if name not in text},
        checkpoint,
        metadata={"modelspec.resolution": f"{world.SIDE}x{world.SIDE}"},
    )
    save_file(
        {f"model.{name.removeprefix(TEXT)}": one for name, one in text.items()},
        folder / "text_encoder" / "qwen_3_4b.safetensors",
    )
    (folder / "text_encoder/qwen3/tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    vae = tiny_flux.vae_tensors(sixteen_channels())
    save_file(
        {name: one.contiguous() for name, one in vae.items()}, folder / "VAE" / "ae.safetensors"
    )
    return checkpoint


if __name__ == "__main__":
    main()

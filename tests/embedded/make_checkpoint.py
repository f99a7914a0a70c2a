"""Makes the embedded checkpoint: the SD1 architecture at reduced width, trained on the drawn world.

    python -m tests.embedded.make_checkpoint STATE_FOLDER vae
    python -m tests.embedded.make_checkpoint STATE_FOLDER unet
    python -m tests.embedded.make_checkpoint STATE_FOLDER judge
    python -m tests.embedded.make_checkpoint STATE_FOLDER write

Each stage saves its progress every two minutes and goes on from it when started again. Not run in
CI.

How the file in this folder was made, on two threads of a shared four-core machine (torch 2.13,
`--processes 2`), in about an hour:

- VAE: 1,500 steps of 16 (14.5 minutes, 31.4 dB) in a first form whose widths changed inside the
  blocks, which a WebUI's configuration cannot name; its weights, carried over as far as they fit
  (22.9 dB), then 1,000 steps in today's form (7.4 minutes, 32.3 dB). A fresh start in today's form
  is expected to need about as much as the first; it has not been run.
- UNet and text encoder: 3,700 steps of 48 on 10,000 drawings (planned for 3,500, lengthened at
  3,061). At 950 steps all colours, sizes and backgrounds obeyed; shapes and places came after
  2,000.
- The figures in the file's metadata (`world.figures`) are those of 96 random prompts, 25 steps of
  DDIM, guidance 4: shape 0.91, all else 1.00. With 192 others and 20 steps: shape 0.88, position
  0.99, all else 1.00. In 96 more (shape 0.89) each miss was a small star, read as another shape.

Everything is seeded; a run that is interrupted, or shared among another number of processes, goes
on with other images and ends in other weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.demo import EMBEDDED, world
from lora_trainer.demo.obedience import sample
from lora_trainer.families.stable_diffusion import SD1
from tests.checkpoint.write import write_checkpoint
from tests.embedded import scenes
from tests.embedded.make_unet import UnetSettings, new_text_encoder, new_unet, train_unet
from tests.embedded.make_vae import (
    VaeSettings,
    drawn,
    settled_skeleton,
    train_vae,
    vae_decibels,
    widen,
)
from tests.embedded.stages import Share, load_state


def made_parts(folder: Path) -> tuple[Parts, dict[str, str]]:
    """The trained parts so far, and metadata about them."""
    skeleton, of_vae = settled_skeleton(folder)
    model = torch.nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder()})
    of_unet = load_state(folder / "unet.pt", average=model)
    model.requires_grad_(False)
    parts = Parts(
        family=SD1,
        schedule=NoiseSchedule(),
        unet=model["unet"].eval(),
        vae=widen(skeleton.vae).eval().requires_grad_(False),
        text_encoders=(model["text"].eval(),),
        tokenizers=SD1.tokenizers(),
    )
    about = {
        "modelspec.title": "embedded checkpoint of the drawn world",
        "modelspec.resolution": f"{world.SIDE}x{world.SIDE}",
        "modelspec.description": "A small SD1 trained on drawn shapes, for the demo and the tests.",
        "world.vae": (
            f"{of_vae.step} steps of {VaeSettings.batch_size}, {of_vae.seconds / 3600:.2f} h"
        ),
        "world.unet": (
            f"{of_unet.step} steps of {UnetSettings.batch_size}, {of_unet.seconds / 3600:.2f} h"
        ),
    }
    return parts, about


def judge(parts: Parts, sheet: Path, count: int = 96, seed: int = 1) -> dict[str, float]:
    """The shares of prompts obeyed, and the VAE's PSNR; writes a contact sheet of the first
    images.
    """
    wanted = scenes.random_scenes(count, seed)
    images = sample(parts, [scenes.prompt_of(scene) for scene in wanted], seed)
    scenes.contact_sheet(images[:48], columns=12, zoom=2).save(sheet)
    pictures = drawn(scenes.drawings(999), 48)
    return scenes.shares_obeyed(images, wanted) | {"decibels": vae_decibels(parts.vae, pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=("vae", "unet", "judge", "write"))
    parser.add_argument(
        "target", type=Path, nargs="?", default=EMBEDDED, help="for write: the file to make"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rank", type=int, default=0, help="this process's number, from 0")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="how many processes train together, one thread each",
    )
    chosen = parser.parse_args()
    if chosen.processes > 1:
        torch.set_num_threads(1)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    share = Share(chosen.rank, chosen.processes, chosen.folder / f"meeting-{chosen.stage}")
    if chosen.stage == "vae":
        train_vae(
            chosen.folder,
            VaeSettings(**({"step_count": chosen.steps} if chosen.steps else {})),
            share,
        )
    elif chosen.stage == "unet":
        train_unet(
            chosen.folder,
            UnetSettings(**({"step_count": chosen.steps} if chosen.steps else {})),
            share,
        )
    else:
        parts, about = made_parts(chosen.folder)
        figures = {
            name: round(figure, 3)
            for name, figure in judge(parts, chosen.folder / "judged.png").items()
        }
        print(about, figures)
        if chosen.stage == "write":
            write_checkpoint(
                parts, chosen.target, torch.float16, about | {"world.figures": json.dumps(figures)}
            )


if __name__ == "__main__":
    main()

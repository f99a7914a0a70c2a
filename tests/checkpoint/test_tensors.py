"""How much memory loading takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from lora_trainer.checkpoint.parts import NoiseSchedule, Parts
from lora_trainer.families.stable_diffusion import SD1
from tests.checkpoint.samples import random_parts
from tests.checkpoint.write import write_checkpoint

MEASURE = """
import sys, torch
from lora_trainer.checkpoint.load import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
torch.zeros(1).to(torch.bfloat16)
def peak(): return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
unet = checkpoint.load_unet(torch.bfloat16)
print(peak() - before, sum(parameter.numel() * 2 for parameter in unet.parameters()))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of resident memory is read from /proc"
)
@pytest.mark.xdist_group("forked")
def test_loading_takes_the_model_in_its_new_type_and_one_tensor_more(
    tmp_path: Path, forking: list[str]
) -> None:
    """A float32 file of 164 MB, read as bfloat16: memory rises by the model's 82 MB, and less than
    24 MB for the buffer and the allocator.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(128, 256, 256),
        layers_per_block=2,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
    )
    parts = Parts(
        family=SD1,
        schedule=NoiseSchedule(),
        unet=unet,
        text_encoders=random_parts("sd1").text_encoders,
    )
    file = write_checkpoint(parts, tmp_path / "x.safetensors", torch.float32)
    largest = max(parameter.numel() * 4 for parameter in unet.parameters())
    script = tmp_path / "measure.py"
    script.write_text(MEASURE, encoding="utf-8")
    # the peak of a forked process begins at what it has
    result = subprocess.run(
        [*forking, str(script), str(file)], capture_output=True, text=True, check=True
    )
    rise, model = (int(word) for word in result.stdout.split())
    assert model > 80_000_000
    assert largest < 8_000_000
    assert model * 0.8 < rise < model + 24_000_000

"""Detects family and noise schedule from a checkpoint's header, or why it cannot be trained on.

By tensor names and shapes, as in the WebUIs, then sidecar `NAME.yaml` and metadata. Each family is
asked in turn. Without torch; also used by the tab.

Prediction type of a diffusion model, in order of precedence:

1. the sidecar: `parameterization: v`, or SGM's VScaling (as in A1111 and Forge)
2. the marker tensors `v_pred` and `ztsnr` (written by trainers of SDXL v-prediction models, read by
Forge and reForge)
3. the metadata: `modelspec.prediction_type`, `modelspec.architecture`
4. SD1 and SDXL: epsilon. SD2: None: epsilon (512 px) and v-prediction (768 px) checkpoints have the
same names and shapes, so `load` runs the UNet
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer import families, files
from lora_trainer.checkpoint.header import Header, TensorInfo, read_header
from lora_trainer.checkpoint.licence import Licence, read_licence
from lora_trainer.checkpoint.names import UNET_PREFIX, TextEncoderLayout
from lora_trainer.checkpoint.parts import PredictionType
from lora_trainer.errors import CheckpointError, ConfigError, Message
from lora_trainer.settings.schema import parse_yaml

if TYPE_CHECKING:
    from lora_trainer.families.base import Family

FULL_PRECISIONS = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
"""Supported dtypes of weights."""
ANOTHER = "Choose a checkpoint of SD1, SD2, SDXL, FLUX.1, FLUX.2 klein, Z-Image or Anima."


@dataclass(frozen=True, kw_only=True)
class Detected:
    """What the header tells about a checkpoint."""

    family: Family
    has_vae: bool
    prediction_type: PredictionType | None = None
    """None if unknown (SD2), or not a diffusion model."""
    zero_terminal_snr: bool = False
    beta_start: float = 0.00085
    beta_end: float = 0.012
    text_encoders: tuple[TextEncoderLayout, ...] = ()
    """Positions of the CLIP text encoders."""
    resolution: int | None = None
    """Side in pixels of its training images, from modelspec.resolution ("512x512")."""
    licence: Licence | None = None
    """None: not stated."""
    variant: str = ""
    """Which of a family's models it is, where they differ."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """By the id of a PartKind: the width that the model takes of this part."""
    is_distilled: bool = False
    """Whether it was distilled to few steps, as far as can be told."""
    notes: tuple[Message, ...] = ()
    """Warnings about it."""

    @property
    def native_resolution(self) -> int:
        """Side in pixels of its training images: from its metadata, else its family's."""
        return (
            self.resolution
            or self.family.native_resolution(self.prediction_type)
            or self.family.usual_resolution
        )


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Settings of a WebUI `NAME.yaml` that affect training. None: not stated."""

    prediction_type: PredictionType | None = None
    beta_start: float | None = None
    beta_end: float | None = None


def detect_file(path: Path) -> Detected:
    """Detect the checkpoint at `path`, with its sidecar. Raises CheckpointError if it cannot be
    trained on.
    """
    return detect(read_header(path), read_sidecar(path))


def detect(header: Header, sidecar: Sidecar | None = None) -> Detected:
    """Detect the checkpoint with this header. Raises CheckpointError if it cannot be trained on."""
    for family in families.every():
        found = family.recognise(header, sidecar or Sidecar())
        if found is not None:
            return replace(found, licence=read_licence(header.path, header.metadata))
    refuse(header)
    raise CheckpointError(
        "{path} is a model of an unknown kind (it holds {examples})",
        hint=ANOTHER,
        path=header.path,
        examples=", ".join(sorted(header.tensors)[:3]),
    )


RESOLUTION = re.compile(
    r"\D{0,2}(\d{2,5})(?:\s{0,2}[x×*,]\s{0,2}(\d{2,5}))?\D{0,2}", re.ASCII | re.IGNORECASE
)


def stated_resolution(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height from `modelspec.resolution`: "1024x1024", "1024, 1024", "(1024, 1024)" or
    "1024"; else None.
    """
    match = RESOLUTION.fullmatch(metadata.get("modelspec.resolution", "").strip())
    return (int(match[1]), int(match[2] or match[1])) if match else None


def stated_side(metadata: Mapping[str, str], step: int) -> int | None:
    """The side of a square with the same area, a multiple of `step`."""
    stated = stated_resolution(metadata)
    return round(math.sqrt(stated[0] * stated[1])) // step * step or None if stated else None


def read_sidecar(path: Path) -> Sidecar | None:
    """The WebUI's `NAME.yaml` beside a checkpoint, or None."""
    file = Path(path).with_suffix(".yaml")
    if not file.is_file():
        return None
    try:
        params = dict(parse_yaml(file.read_text(encoding="utf-8-sig"), file)["model"]["params"])
    except (ConfigError, *files.UNREADABLE) as error:
        hint = "The WebUI reads it as the checkpoint's configuration. Repair it, or move it away."
        raise CheckpointError(
            "{path} is not a WebUI model configuration", hint=hint, path=file
        ) from error
    scaling = _walk(params, "denoiser_config", "params", "scaling_config", "target")
    is_v = params.get("parameterization") == "v" or str(scaling).endswith(".VScaling")
    return Sidecar(
        prediction_type="v_prediction" if is_v else "epsilon",
        beta_start=_number(params.get("linear_start")),
        beta_end=_number(params.get("linear_end")),
    )


def _walk(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    # YAML integers may exceed the range of float
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1 else None


def usual_type(infos: Iterable[TensorInfo]) -> str:
    """The dtype of most bytes of these tensors."""
    sizes = Counter[str]()
    for info in infos:
        sizes[info.dtype] += info.end - info.start
    return sizes.most_common(1)[0][0]


def has_clip(header: Header, prefix: str) -> bool:
    """Whether there is a CLIP text encoder at `prefix`."""
    return prefix + "embeddings.token_embedding.weight" in header.tensors


def has_open_clip(header: Header, prefix: str) -> bool:
    """Whether there is an OpenCLIP text encoder at `prefix`."""
    return prefix + "token_embedding.weight" in header.tensors


def refuse(header: Header) -> None:
    """Raise CheckpointError for other kinds of files, regardless of the family."""
    for holds, what, hint in _KINDS:
        if holds(header):
            raise CheckpointError("{path} is " + what, hint=hint, path=header.path)


def require_full_precision(header: Header, prefix: str) -> None:
    """Raise CheckpointError if weights at `prefix` are quantized."""
    used = {info.dtype for name, info in header.tensors.items() if name.startswith(prefix)}
    odd = min(used.difference(FULL_PRECISIONS), default=None)
    if odd:
        hint = "Training needs the fp16, bf16 or fp32 version."
        raise CheckpointError(
            "the weights in {path} are quantised ({kind})", hint=hint, path=header.path, kind=odd
        )


def _has(*names: str) -> Callable[[Header], bool]:
    return lambda header: any(name in header.tensors for name in names)


def _begins(*starts: str) -> Callable[[Header], bool]:
    return lambda header: any(name.startswith(starts) for name in header.tensors)


def _contains(*parts: str) -> Callable[[Header], bool]:
    return lambda header: any(part in name for name in header.tensors for part in parts)


def _matches(pattern: str) -> Callable[[Header], bool]:
    search = re.compile(pattern).search
    return lambda header: any(map(search, header.tensors))


def _ends(*ends: str) -> Callable[[Header], bool]:
    return lambda header: any(name.endswith(ends) for name in header.tensors)


def _without_unet(holds: Callable[[Header], bool]) -> Callable[[Header], bool]:
    return lambda header: (
        UNET_PREFIX + "input_blocks.0.0.weight" not in header.tensors and holds(header)
    )


def _is_embedding(header: Header) -> bool:
    return len(header.tensors) <= 4 and any(
        name in ("emb_params", "clip_l", "clip_g", "*") or name.startswith("string_to_param")
        for name in header.tensors
    )


def _is_refiner(header: Header) -> bool:
    return (
        has_open_clip(header, "conditioner.embedders.0.model.")
        and UNET_PREFIX + "label_emb.0.0.weight" in header.tensors
    )


FULL_CHECKPOINT = "Set base_model to the full checkpoint."
_KINDS: tuple[tuple[Callable[[Header], bool], str, str], ...] = (
    (
        _matches(
            r"\.lora_(down|up|linear_layer)\.|[._]lora\.down\.|\.lora_([AB]|magnitude_vector)"
            r"|\.dora_scale|\.hada_w1_|\.lokr_w1|\.oft_(blocks|diag|R)|\.boft_R|\.vera_lambda_"
            r"|\.w_norm|\.on_input|\.ia3_l|\.a1\.weight|\.diff_b"
        ),
        "a LoRA, not a checkpoint",
        "Set base_model to the checkpoint the LoRA was made for.",
    ),
    (_is_embedding, "a textual-inversion embedding, not a checkpoint", FULL_CHECKPOINT),
    (
        _contains("control_model.", "input_hint_block.", "controlnet_", "lllite_"),
        "a ControlNet, not a checkpoint",
        FULL_CHECKPOINT,
    ),
    (_contains("motion_modules."), "an AnimateDiff motion module or holds one", ANOTHER),
    (
        _contains("joint_transformer_blocks.", "double_layers.", "cond_seq_linear."),
        "an AuraFlow model, which is not supported",
        ANOTHER,
    ),
    (
        _contains("individual_token_refiner.", "token_refiner.refiner_blocks."),
        "a HunyuanVideo model, which is not supported",
        ANOTHER,
    ),
    (
        _contains("joint_blocks."),
        "a Stable Diffusion 3 model, which is not supported",
        ANOTHER,
    ),
    (
        _contains("double_stream_modulation_img."),
        "a FLUX.2 model of a kind that is not supported, or a part of one",
        ANOTHER,
    ),
    (
        _matches(r"transformer_blocks\.\d+\.img_mod\."),
        "a Qwen-Image model, which is not supported",
        ANOTHER,
    ),
    (_contains("distilled_guidance_layer."), "a Chroma model, which is not supported", ANOTHER),
    (
        _contains("double_blocks.", "single_transformer_blocks."),
        "a FLUX model of a kind that is not supported, or a part of one",
        ANOTHER,
    ),
    (
        _contains("clip_txt_pooled_mapper.", "clip_txt_mapper.", "effnet_mapper."),
        "a Stable Cascade model, which is not supported",
        ANOTHER,
    ),
    (
        _contains("time_stack.", "time_mixer."),
        "a Stable Video Diffusion model, which is not supported",
        ANOTHER,
    ),
    (
        _contains(
            "adaln_single.",
            "adaLN_modulation",
            "t_block.1.",
            "x_embedder.",
            "cap_embedder.",
            "patch_embedding.",
        ),
        "a diffusion transformer, which is not supported",
        ANOTHER,
    ),
    (
        _begins("embedder.model.", "noise_augmentor."),
        "an unCLIP checkpoint, which takes images for prompts",
        ANOTHER,
    ),
    (_begins("depth_model."), "a depth-to-image checkpoint", ANOTHER),
    (
        _begins("cond_stage_model.roberta."),
        "an AltDiffusion checkpoint, whose text encoder is not CLIP",
        ANOTHER,
    ),
    (
        _has("edm_mean", "edm_std", "edm_vpred.sigma_max"),
        "an EDM checkpoint (Playground v2.5, CosXL), whose noise schedule is not supported",
        ANOTHER,
    ),
    (
        _contains("time_embed.cond_proj", "time_embedding.cond_proj"),
        "an LCM-distilled model, which learns nothing from ordinary training",
        "Train on the model it was distilled from.",
    ),
    (
        _ends(
            ".scale_weight",
            ".quant_state.bitsandbytes__nf4",
            ".quant_state.bitsandbytes__fp4",
            ".absmax",
        ),
        "quantised",
        "Training needs the fp16, bf16 or fp32 version.",
    ),
    (
        _is_refiner,
        "an SDXL refiner, which cannot be used alone",
        "Train on the SDXL base checkpoint.",
    ),
    (
        _without_unet(_has("conv_in.weight", "unet.conv_in.weight")),
        "a UNet alone, in diffusers' names",
        "Use the whole diffusers folder, or the single-file checkpoint.",
    ),
    (_without_unet(_has("input_blocks.0.0.weight")), "a UNet alone", FULL_CHECKPOINT),
    (
        _without_unet(_begins("model_ema.")),
        "the EMA copy of a UNet alone",
        "Choose the version of the checkpoint that holds model.diffusion_model weights.",
    ),
    (
        _without_unet(
            _has(
                "decoder.conv_in.weight",
                "first_stage_model.decoder.conv_in.weight",
                "decoder.middle.0.residual.0.gamma",
            )
        ),
        "a VAE alone, not a checkpoint",
        "Set vae to this file, and base_model to a full checkpoint.",
    ),
    (
        _without_unet(
            _contains(
                "text_model.encoder.layers.",
                "transformer.resblocks.",
                "encoder.block.0.layer.0.SelfAttention",
                "layers.0.self_attn.q_norm.",
            )
        ),
        "a text encoder alone",
        FULL_CHECKPOINT,
    ),
)
"""Other kinds of files, most specific test first: a test on the header, what the file is, a
hint.
"""

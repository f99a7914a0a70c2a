"""SD1 and SD2, and what SDXL shares with them: a UNet conditioned on CLIP text encoders,
AutoencoderKL with four latent channels, and diffusion (arXiv 2112.10752).

    part             checkpoint file (LDM)               LoRA file
    unet             model.diffusion_model.              lora_unet_ + diffusers' path
    text_encoder     cond_stage_model.                   lora_te_ + path
    vae              first_stage_model.

Both loaders find these names: A1111 1.10.1 (extensions-builtin/Lora/networks.py) and Forge
(packages_3rdparty/comfyui_lora_collection/lora.py). For a UNet whose blocks are not two layers
deep, LoRA files use the checkpoint's names, because A1111 translates diffusers' names assuming that
depth. For SD2 the host has all 24 layers of the text encoder, we the 23 in use: layer numbers
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.checkpoint import architecture
from lora_trainer.checkpoint.detect import (
    ANOTHER,
    Detected,
    Sidecar,
    has_clip,
    has_open_clip,
    refuse,
    require_full_precision,
    stated_side,
)
from lora_trainer.checkpoint.folder import Folder, read_component, read_json
from lora_trainer.checkpoint.header import Header, read_header
from lora_trainer.checkpoint.names import (
    UNET_PREFIX,
    VAE_PREFIX,
    TextEncoderLayout,
    flat,
    native_flat_path,
    rename,
    unet_modules,
)
from lora_trainer.checkpoint.parts import (
    Component,
    Components,
    NoiseSchedule,
    Parts,
    PredictionType,
    Schedule,
)
from lora_trainer.errors import CheckpointError, Message
from lora_trainer.families.base import Family, NativePaths, NoiseProcess, Shape, TextStates

if TYPE_CHECKING:
    import torch

    from lora_trainer.checkpoint.load import Checkpoint

USUAL_DEPTH = 2
"""Layers per block in the UNet of every published checkpoint, which A1111's translation assumes."""
CLIP = TextEncoderLayout("cond_stage_model.transformer.text_model.", "clip")
OPEN_CLIP = TextEncoderLayout("cond_stage_model.model.", "open_clip")
XL_CLIP = TextEncoderLayout("conditioner.embedders.0.transformer.text_model.", "clip")
XL_OPEN_CLIP = TextEncoderLayout("conditioner.embedders.1.model.", "open_clip")


class StableDiffusion(Family):
    """The common part of the three families."""

    latent_channels = 4
    convolution_targets = tuple(
        "conv1 conv2 conv_shortcut time_emb_proj downsamplers.0.conv upsamplers.0.conv".split()
    )
    latent_scale = 0.18215
    """The VAE's scaling_factor: latents times this have about unit variance."""
    side = 512
    """Native resolution in pixels unless stated otherwise."""
    text_encoder_layouts: tuple[TextEncoderLayout, ...]
    """Where the family's original files have the text encoders."""
    text_encoder_folders: tuple[str, ...] = ("text_encoder",)
    last_text_layer_unused = False
    """Whether only the penultimate layer's output is used, so that the last layer is not built."""
    upcast_attention = False
    size_conditioned = False
    """Whether the UNet takes size values and pooled text."""

    # --- detection --------------------------------------------------------------------------------

    def recognise(self, header: Header, sidecar: Sidecar) -> Detected | None:
        conv_in = header.shape(UNET_PREFIX + "input_blocks.0.0.weight")
        if conv_in is None or len(conv_in) != 4:
            return None
        layouts = text_encoder_layouts(header)
        if layouts and not self.has_text_encoders(layouts):
            return None
        refuse(header)
        if conv_in[1] != self.latent_channels:
            raise _wrong_input(header.path, conv_in[1])
        require_full_precision(header, UNET_PREFIX)
        if not layouts:
            raise CheckpointError(
                "{path} has no text encoder",
                hint=(
                    "It may be a UNet by itself, for a WebUI that loads the parts apart. Choose the"
                    " full checkpoint."
                ),
                path=header.path,
            )
        return Detected(
            family=self,
            prediction_type=self._prediction_type(header, sidecar),
            zero_terminal_snr="ztsnr" in header.tensors
            or header.metadata.get("ss_zero_terminal_snr") == "True",
            beta_start=sidecar.beta_start or 0.00085,
            beta_end=sidecar.beta_end or 0.012,
            text_encoders=layouts,
            has_vae=VAE_PREFIX + "decoder.conv_in.weight" in header.tensors,
            resolution=stated_side(header.metadata, self.pixels_per_latent),
        )

    def has_text_encoders(self, layouts: tuple[TextEncoderLayout, ...]) -> bool:
        """Whether these are the text encoders of this family."""
        styles = [layout.style for layout in self.text_encoder_layouts]
        return [layout.style for layout in layouts] == styles

    def _prediction_type(self, header: Header, sidecar: Sidecar) -> PredictionType | None:
        """See `checkpoint.detect`."""
        if sidecar.prediction_type == "v_prediction" or "v_pred" in header.tensors:
            return "v_prediction"
        stated = header.metadata.get("modelspec.prediction_type", "").lower()
        if stated in ("v", "v_prediction", "v-prediction") or header.metadata.get(
            "modelspec.architecture", ""
        ).endswith("-v"):
            return "v_prediction"
        if stated in ("epsilon", "eps"):
            return "epsilon"
        return self.default_prediction_type(sidecar)

    def default_prediction_type(self, sidecar: Sidecar) -> PredictionType | None:
        """The same for a file without any statement."""
        return "epsilon"

    def recognise_folder(self, path: Path) -> Folder | None:
        if not (path / "unet").is_dir():
            return None
        unet = read_component(path / "unet")
        _refuse_folder(path, unet.config, self.latent_channels)
        if not self.is_folder(path, unet.config):
            return None
        text_encoders = tuple(read_component(path / name) for name in self.text_encoder_folders)
        file = path / "scheduler" / "scheduler_config.json"
        scheduler = read_json(file) if file.is_file() else {}
        stated = scheduler.get("prediction_type")
        prediction_type = self.default_prediction_type(Sidecar())
        if stated in ("epsilon", "v_prediction"):
            prediction_type = stated
        elif stated:
            raise CheckpointError(
                "{path} predicts {kind}, which is not supported",
                hint=ANOTHER,
                path=path,
                kind=stated,
            )
        detected = Detected(
            family=self,
            prediction_type=prediction_type,
            zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr")),
            beta_start=float(scheduler.get("beta_start", 0.00085)),
            beta_end=float(scheduler.get("beta_end", 0.012)),
            has_vae=(path / "vae").is_dir(),
        )
        return Folder(
            detected=detected,
            unet=unet,
            text_encoders=text_encoders,
            vae=read_component(path / "vae") if (path / "vae").is_dir() else None,
        )

    def is_folder(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Whether a diffusers folder with this UNet configuration is of this family."""
        raise NotImplementedError

    def native_resolution(self, prediction_type: PredictionType | None) -> int | None:
        return self.side

    @property
    def usual_resolution(self) -> int:
        return self.side

    def is_stated_by(self, header: Header) -> bool:
        """Whether a file states this family by its text encoders or metadata, as a VAE file may."""
        if UNET_PREFIX + "input_blocks.0.0.weight" in header.tensors:
            layouts = text_encoder_layouts(header)
            if layouts:
                return self.has_text_encoders(layouts)
        stated = header.metadata.get("modelspec.architecture", "").lower()
        return stated.startswith(self.spec_beginning)

    spec_beginning: str
    """Prefix of modelspec.architecture in the family's files."""

    # --- opening and loading ----------------------------------------------------------------------

    def head_count(self, width: int) -> int:
        """Attention heads at a level with this many channels."""
        return max(1, width // 64)

    def components(self, header: Header, detected: Detected) -> Components:
        from lora_trainer.families.components import ldm

        return ldm.in_file(header, self, detected.text_encoders)

    def folder_components(self, folder: Folder) -> Components:
        from lora_trainer.families.components import ldm

        return ldm.in_folder(folder)

    def vae_component(self, path: Path) -> Component:
        """Raises CheckpointError if it states a family with other latents; names and shapes do not
        tell.
        """
        from lora_trainer.families.components import ldm

        if path.is_dir():
            folder = read_component(path / "vae" if (path / "vae").is_dir() else path)
            return ldm.vae_in_folder(folder, self, path)
        header = read_header(path)
        stated = next((family for family in _all() if family.is_stated_by(header)), self)
        if stated.latent_scale != self.latent_scale:
            raise self.foreign_vae(path)
        for prefix in (VAE_PREFIX, ""):
            if prefix + "decoder.conv_in.weight" in header.tensors:
                return ldm.vae_in_file(header, self, prefix)
        raise CheckpointError(
            "{path} holds no VAE",
            hint=(
                "Set vae to a VAE file for this kind of checkpoint, or to auto for the one inside."
            ),
            path=path,
        )

    def foreign_vae(self, path: Path) -> CheckpointError:
        """The error for a VAE of a family with other latents."""
        return CheckpointError(
            "the VAE in {path} is one of SDXL, which does not fit a checkpoint of SD1 or SD2",
            hint=FITTING_VAE,
            path=path,
        )

    def tokenizers(self) -> tuple[Any, ...]:
        from lora_trainer.checkpoint.tokenizer import load_tokenizers

        return load_tokenizers(layout.style for layout in self.text_encoder_layouts)

    def schedule(self, checkpoint: Checkpoint) -> NoiseSchedule:
        detected, asked = checkpoint.detected, checkpoint.asked_zero_terminal_snr
        prediction_type = (
            checkpoint.asked_prediction_type
            or detected.prediction_type
            or self.ask_unet(checkpoint)
        )
        zero_terminal_snr = detected.zero_terminal_snr if asked is None else asked
        if zero_terminal_snr and prediction_type == "epsilon":
            checkpoint.note(
                Message(
                    "zero_terminal_snr is on, but the model predicts epsilon: it works with "
                    "v-prediction only"
                )
            )
        return NoiseSchedule(
            prediction_type=prediction_type,
            zero_terminal_snr=zero_terminal_snr,
            beta_start=detected.beta_start,
            beta_end=detected.beta_end,
        )

    def ask_unet(self, checkpoint: Checkpoint) -> PredictionType:
        """Determine the prediction type by running the UNet."""
        raise NotImplementedError

    def layer_shapes(self, path: Path, detected: Detected) -> dict[str, list[tuple[str, Shape]]]:
        if path.is_dir():
            folder = self.recognise_folder(path)
            assert folder is not None, "it was recognised before"
            configs: list[dict[str, Any]] = [each.config for each in folder.text_encoders]
            unet = [layer for each in folder.unet.headers for layer in _layers(each, "")]
        else:
            header = read_header(path)
            configs = [
                architecture.text_encoder_config(
                    header, layout, last_layer_unused=self.last_text_layer_unused
                )
                for layout in detected.text_encoders
            ]
            width = configs[-1]["projection_dim"]
            config = architecture.unet_config(header, self, pooled_width=width)
            ours = {theirs: name for name, theirs in unet_modules(config).items()}
            unet = [(rename(name, ours), shape) for name, shape in _layers(header, UNET_PREFIX)]
        return {
            "unet": unet,
            "text_encoder": [layer for config in configs for layer in _text_layers(config)],
        }

    # --- encoding ---------------------------------------------------------------------------------

    def count_tokens(self, tokenizers: Sequence[Any], caption: str) -> int:
        from lora_trainer.families.components.clip import token_ids

        return len(token_ids(tokenizers[0], caption))

    def encode_captions(
        self, parts: Parts, captions: Sequence[str], *, clip_skip: int, max_token_length: int
    ) -> TextStates:
        from lora_trainer.families.components.clip import encode_in_pieces

        return encode_in_pieces(
            parts,
            captions,
            max_token_length,
            lambda encoder, ids: self.encode_piece(encoder, ids, clip_skip),
        )

    def encode_piece(
        self, encoder: Any, ids: torch.Tensor, clip_skip: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A text encoder's hidden states (B, 77, C) for token ids (B, 77), and its pooled state or
        None.
        """
        return encoder(ids).last_hidden_state, None

    def join(self, rows: Sequence[TextStates], empty: TextStates) -> TextStates:
        from lora_trainer.families.components.clip import join_pieces

        return join_pieces(rows, empty)

    # --- noise and prediction ---------------------------------------------------------------------

    def noise_process(self, schedule: Schedule, device: torch.device | str = "cpu") -> NoiseProcess:
        from lora_trainer.families.components.noise import NoiseLevels

        assert isinstance(schedule, NoiseSchedule), "the schedule of a diffusion model"
        return NoiseLevels.of(schedule, device)

    def predict(
        self,
        model: Any,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: TextStates,
        sizes: torch.Tensor,
    ) -> torch.Tensor:
        dtype = next(model.parameters()).dtype
        prediction = model(
            noisy.to(dtype),
            times,
            encoder_hidden_states=text.hidden.to(dtype),
            added_cond_kwargs=self.added_conditions(text, sizes, dtype),
            return_dict=False,
        )[0]
        return prediction  # type: ignore[no-any-return]

    def added_conditions(
        self, text: TextStates, sizes: torch.Tensor, dtype: torch.dtype
    ) -> dict[str, torch.Tensor] | None:
        """`added_cond_kwargs` of the UNet."""
        return None

    def blocks(self, model: Any) -> list[tuple[Any, ...]]:
        from lora_trainer.families.components.unet import blocks

        return list(blocks(model))

    # --- the LoRA ---------------------------------------------------------------------------------

    def may_learn(self, path: str) -> bool:
        # in the hosts it is a plain parameter that no LoRA key reaches
        return path != "text_projection"

    def layer_names(self, parts: Parts) -> Callable[[str, str], str]:
        native = self._native_path(parts)
        named_as_file = parts.unet is not None and self.names_unet_as_file(parts.unet)

        def name(part: str, path: str) -> str:
            found = (
                native(part, path)
                if part != "unet" or named_as_file
                else self.flat_path(part, path)
            )
            return self.lora_prefixes[part] + found

        return name

    def names_unet_as_file(self, unet: Any) -> bool:
        """Whether LoRA files use the checkpoint's names for the UNet's layers instead of
        diffusers'.
        """
        return int(unet.config.layers_per_block) != USUAL_DEPTH

    def native_paths(self, parts: Parts) -> NativePaths:
        usual: dict[str, str] = {}
        if parts.unet is not None:
            usual = flat(unet_modules({**parts.unet.config, "layers_per_block": USUAL_DEPTH}))
        return NativePaths(
            of_layer=self._native_path(parts),
            as_hosts_read=lambda part, path: (
                native_flat_path(path, usual) if part == "unet" else path
            ),
        )

    def _native_path(self, parts: Parts) -> Callable[[str, str], str]:
        modules = {} if parts.unet is None else unet_modules(parts.unet.config)
        return lambda part, path: (
            rename(path, modules).replace(".", "_")
            if part == "unet"
            else self.flat_path(part, path)
        )

    def flat_path(self, part: str, path: str) -> str:
        name = super().flat_path(part, path)
        # transformers 5 has no text_model in the path; the hosts do
        return name if part == "unet" or name.startswith("text_model_") else "text_model_" + name

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        return self.spec_beginning


class _StableDiffusion1(StableDiffusion):
    id = "sd1"
    name = "SD1.5"
    sd_version = "SD1"
    text_encoder_layouts = (CLIP,)
    has_clip_skip = True
    spec_beginning = "stable-diffusion-v1"

    def is_folder(self, path: Path, config: Mapping[str, Any]) -> bool:
        return not _is_xl(config) and not _is_open_clip(path)

    def head_count(self, width: int) -> int:
        return 8

    def encode_piece(
        self, encoder: Any, ids: torch.Tensor, clip_skip: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """clip_skip counts layers from the end."""
        if clip_skip == 1:
            return super().encode_piece(encoder, ids, clip_skip)
        layers = encoder(ids, output_hidden_states=True).hidden_states
        chosen = layers[-min(clip_skip, len(layers) - 1)]
        return encoder.text_model.final_layer_norm(chosen), None

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "sd_v1"

    def is_named_by(self, version: str) -> bool:
        return version.startswith("sd_v1")


class _StableDiffusion2(StableDiffusion):
    """Its files' text encoder ends with the penultimate layer, which is always used, regardless of
    clip_skip.
    """

    id = "sd2"
    name = "SD2"
    sd_version = "SD2"
    text_encoder_layouts = (OPEN_CLIP,)
    last_text_layer_unused = True
    upcast_attention = True
    has_clip_skip = True
    is_v2 = True
    spec_beginning = "stable-diffusion-v2"

    def is_folder(self, path: Path, config: Mapping[str, Any]) -> bool:
        return not _is_xl(config) and _is_open_clip(path)

    def default_prediction_type(self, sidecar: Sidecar) -> PredictionType | None:
        """epsilon (512 px) and v-prediction (768 px) checkpoints have the same names and shapes."""
        return sidecar.prediction_type

    def native_resolution(self, prediction_type: PredictionType | None) -> int | None:
        if prediction_type is None:
            return None
        return self.largest_resolution if prediction_type == "v_prediction" else self.side

    @property
    def largest_resolution(self) -> int:
        return 768

    def ask_unet(self, checkpoint: Checkpoint) -> PredictionType:
        """From its output; for an unpublished width, epsilon is assumed."""
        import torch

        from lora_trainer.families.components.ldm import answers_like_v_prediction

        config = checkpoint.unet.config
        if config["block_out_channels"][0] != 320 or config["cross_attention_dim"] != 1024:
            checkpoint.note(
                Message(
                    "the file does not state the prediction type; epsilon is assumed. Set "
                    "prediction_type if it is a v-prediction model"
                )
            )
            return "epsilon"
        is_v = answers_like_v_prediction(checkpoint.load_unet(torch.bfloat16))
        found: PredictionType = "v_prediction" if is_v else "epsilon"
        checkpoint.note(
            Message(
                "a test of the model shows that it predicts {kind}; set prediction_type if that"
                " is wrong",
                {"kind": found},
            )
        )
        return found

    def base_model_version(self, prediction_type: PredictionType | None) -> str:
        return "sd_v2_v" if prediction_type == "v_prediction" else "sd_v2"

    def is_named_by(self, version: str) -> bool:
        return version.startswith("sd_v2")

    def spec_architecture(self, prediction_type: PredictionType | None) -> str:
        is_v = prediction_type == "v_prediction"
        return f"{self.spec_beginning}-{'768-v' if is_v else '512'}"


SD1 = _StableDiffusion1()
SD2 = _StableDiffusion2()
FAMILIES = (SD1, SD2)
FITTING_VAE = "Set vae to auto for the one inside base_model, or to a VAE made for its kind."


def _all() -> list[StableDiffusion]:
    from lora_trainer import families

    return [family for family in families.every() if isinstance(family, StableDiffusion)]


def text_encoder_layouts(header: Header) -> tuple[TextEncoderLayout, ...]:
    """Positions of the text encoders; empty if there are none. Early SD1 files (NovelAI's) lack
    `text_model`; SD 2.1 turbo has SDXL's naming.
    """
    if has_open_clip(header, XL_OPEN_CLIP.prefix) and has_clip(header, XL_CLIP.prefix):
        return XL_CLIP, XL_OPEN_CLIP
    for prefix in (CLIP.prefix, "cond_stage_model.transformer."):
        if has_clip(header, prefix):
            return (TextEncoderLayout(prefix, "clip"),)
    for prefix in (OPEN_CLIP.prefix, "conditioner.embedders.0.model."):
        if has_open_clip(header, prefix):
            return (TextEncoderLayout(prefix, "open_clip"),)
    return ()


def _wrong_input(path: Path, channels: int) -> CheckpointError:
    if channels == 9:
        hint = "Train on the checkpoint it was made from; the LoRA works in the inpainting one too."
        return CheckpointError(
            "{path} is an inpainting checkpoint (9 input channels)", hint=hint, path=path
        )
    template = "the UNet in {path} has {count} input channels instead of 4"
    if channels == 8:
        template = "{path} is an instruct-pix2pix checkpoint (8 input channels)"
    elif channels == 5:
        template = "{path} is a depth-to-image checkpoint (5 input channels)"
    return CheckpointError(template, hint=ANOTHER, path=path, count=channels)


def _refuse_folder(path: Path, config: Mapping[str, Any], input_channels: int) -> None:
    """Raise CheckpointError for a diffusers folder whose UNet is of none of these families."""
    channels = config.get("in_channels", input_channels)
    if channels != input_channels:
        raise _wrong_input(path, channels)
    if config.get("time_cond_proj_dim"):
        hint = "Train on the model it was distilled from."
        raise CheckpointError(
            "{path} is an LCM-distilled model, which learns nothing from ordinary training",
            hint=hint,
            path=path,
        )
    if _is_xl(config):
        if not (path / "text_encoder").is_dir():
            raise CheckpointError(
                "{path} is an SDXL refiner, which cannot be used alone",
                hint="Train on the SDXL base checkpoint.",
                path=path,
            )
    elif (
        config.get("_class_name") != "UNet2DConditionModel"
        or config.get("class_embed_type")
        or config.get("encoder_hid_dim")
    ):
        raise CheckpointError("{path} is a model of an unknown kind", hint=ANOTHER, path=path)


def _is_xl(config: Mapping[str, Any]) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _is_open_clip(path: Path) -> bool:
    return bool(read_json(path / "text_encoder" / "config.json").get("hidden_act") == "gelu")


def _layers(header: Header, prefix: str) -> list[tuple[str, Shape]]:
    """Name and shape of each weight with two or more dimensions."""
    return [
        (name.removeprefix(prefix).removesuffix(".weight"), info.shape)
        for name, info in header.tensors.items()
        if name.startswith(prefix) and name.endswith(".weight") and len(info.shape) > 1
    ]


def _text_layers(config: Mapping[str, int]) -> list[tuple[str, Shape]]:
    """The Linear layers of a CLIP text encoder, by diffusers' names."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    square, names = (width, width), ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = [
        *((f"self_attn.{name}", square) for name in names),
        ("mlp.fc1", (inner, width)),
        ("mlp.fc2", (width, inner)),
    ]
    return [
        (f"layers.{number}.{name}", shape)
        for number in range(config["num_hidden_layers"])
        for name, shape in layer
    ]

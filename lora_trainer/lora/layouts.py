"""Naming schemes of LoRA files: which trainer's, for which model, of which kind, and what each
WebUI loads.

A file's header -> its layers. Everything is in tables, used by describe and convert. Without torch.

A key is HEAD + PATH + "." + END:

    lora_unet_          down_blocks_0_attentions_0_proj_in   .lora_down.weight   kohya, musubi;
                        LyCORIS with other ends
    unet.               output_blocks.5.1.proj_in            .lora_down.weight   OneTrainer since
                        2025
    diffusion_model.    double_blocks.0.img_attn.qkv         .lora_A.weight      ComfyUI, ai-toolkit
    transformer.        transformer_blocks.0.attn.to_q       .lora_A.weight      diffusers
    base_model.model.   down_blocks.0.attentions.0.proj_in   .lora_A.weight      PEFT

PATH is the model's own ("native": the checkpoint's, SGM's for SDXL) or diffusers'. Paths are kept
flat, with underscores for dots, as in the flat layouts.

Sources: the key maps of A1111 1.10.1 (extensions-builtin/Lora/networks.py), Forge
(packages_3rdparty/comfyui_lora_collection/lora.py) and Forge Neo
(modules_forge/packages/comfy/lora.py), OneTrainer's modules/util/convert/lora, kohya's networks,
LyCORIS, PEFT's and diffusers' loaders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from lora_trainer.checkpoint.header import Header, TensorInfo

# --- suffixes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """The suffix after a layer's name."""

    kind: str
    """LoRA, LoHa, ...; empty for suffixes of any kind, such as alpha."""
    role: str
    style: str = ""
    """kohya, peft or diffusers; empty: used by all."""


ENDS: Mapping[str, End] = {
    "lora_down.weight": End("LoRA", "down", "kohya"),
    "lora_up.weight": End("LoRA", "up", "kohya"),
    "lora_mid.weight": End("LoRA", "mid", "kohya"),
    "lora_A.weight": End("LoRA", "down", "peft"),
    "lora_B.weight": End("LoRA", "up", "peft"),
    "lora_B.bias": End("LoRA", "bias", "peft"),
    "lora_A": End("LoRA", "down", "peft"),
    "lora_B": End("LoRA", "up", "peft"),
    "lora_embedding_A": End("LoRA", "embedding_a", "peft"),
    "lora_embedding_B": End("LoRA", "embedding_b", "peft"),
    "lora.down.weight": End("LoRA", "down", "diffusers"),
    "lora.up.weight": End("LoRA", "up", "diffusers"),
    "lora_linear_layer.down.weight": End("LoRA", "down", "diffusers"),
    "lora_linear_layer.up.weight": End("LoRA", "up", "diffusers"),
    "hada_w1_a": End("LoHa", "w1_a"),
    "hada_w1_b": End("LoHa", "w1_b"),
    "hada_w2_a": End("LoHa", "w2_a"),
    "hada_w2_b": End("LoHa", "w2_b"),
    "hada_t1": End("LoHa", "t1"),
    "hada_t2": End("LoHa", "t2"),
    "lokr_w1": End("LoKr", "w1"),
    "lokr_w1_a": End("LoKr", "w1_a"),
    "lokr_w1_b": End("LoKr", "w1_b"),
    "lokr_w2": End("LoKr", "w2"),
    "lokr_w2_a": End("LoKr", "w2_a"),
    "lokr_w2_b": End("LoKr", "w2_b"),
    "lokr_t2": End("LoKr", "t2"),
    "oft_blocks": End("OFT", "blocks"),
    "oft_diag": End("OFT", "blocks"),
    "oft_R": End("OFT", "blocks", "peft"),
    "oft_R.weight": End("OFT", "blocks"),
    "boft_R": End("BOFT", "blocks", "peft"),
    "boft_s": End("BOFT", "scales", "peft"),
    "a1.weight": End("GLoRA", "a1"),
    "a2.weight": End("GLoRA", "a2"),
    "b1.weight": End("GLoRA", "b1"),
    "b2.weight": End("GLoRA", "b2"),
    "diff": End("full difference", "diff"),
    "diff_b": End("full difference", "diff_b"),
    "set_weight": End("full difference", "set"),
    "w_norm": End("norms", "w_norm"),
    "b_norm": End("norms", "b_norm"),
    "weight": End("IA3", "scales"),
    "on_input": End("IA3", "on_input"),
    "ia3_l": End("IA3", "scales", "peft"),
    "vera_lambda_b": End("VeRA", "scales", "peft"),
    "vera_lambda_d": End("VeRA", "scales", "peft"),
    "dora_scale": End("DoRA", "magnitude"),
    "lora_magnitude_vector": End("DoRA", "magnitude", "peft"),
    "lora_magnitude_vector.weight": End("DoRA", "magnitude", "peft"),
    "alpha": End("", "alpha"),
    "scale": End("", "scale"),
    "rescale": End("", "rescale"),
    "reshape_weight": End("", "reshape"),
}
NAMED_ADAPTER = re.compile(r"(lora_[AB]|lora_magnitude_vector)\.[^.]+\.weight")
"""PEFT may include the adapter's name: lora_A.default.weight."""
MAX_KEY_LENGTH = 512
"""Ten times the usual length."""
OLD_PROCESSOR = "_lora"
"""The first diffusers versions: ...attn1.processor.to_q_lora.down.weight"""


def split_key(key: str) -> tuple[str, str, End] | None:
    """(layer name, suffix, its End), or None for a key that is not a LoRA's."""
    pieces = key.rsplit(".", 3) if len(key) <= MAX_KEY_LENGTH else []
    for count in range(len(pieces) - 1, 0, -1):
        end = ".".join(pieces[-count:])
        name = key[: -len(end) - 1]
        if end in ENDS:
            return name, end, ENDS[end]
        if NAMED_ADAPTER.fullmatch(end):
            return name, end, ENDS[end.split(".")[0] + ".weight"]
        if end in ("down.weight", "up.weight") and name.endswith(OLD_PROCESSOR):
            return (
                name.removesuffix(OLD_PROCESSOR),
                f"_lora.{end}",
                End("LoRA", end.split(".")[0], "diffusers"),
            )
    return None


# --- layouts --------------------------------------------------------------------------------------

UNET, TEXT, TEXT_2, TEXT_3 = "unet", "text_encoder", "text_encoder_2", "text_encoder_3"


@dataclass(frozen=True, eq=False)
class Layout:
    """A naming scheme."""

    name: str
    flat: bool
    """Whether the path has underscores for dots."""
    heads: Mapping[str, str]
    """Prefix -> part of the model."""
    styles: frozenset[str] = frozenset()
    """The suffix styles it is used with; empty: any."""


KOHYA = Layout(
    "kohya",
    True,
    {
        "lora_unet_": UNET,
        "lora_te_": TEXT,
        "lora_te1_": TEXT,
        "lora_te2_": TEXT_2,
        "lora_te3_": TEXT_3,
    },
)
KOHYA_OFT = Layout(
    "kohya OFT", True, {"oft_unet_": UNET, "oft_te_": TEXT, "oft_te1_": TEXT, "oft_te2_": TEXT_2}
)
LYCORIS = Layout("LyCORIS", True, {"lycoris_": UNET})
OLD_ONETRAINER = Layout(
    "OneTrainer (older)",
    True,
    {"lora_transformer_": UNET, "lora_prior_unet_": UNET, "lora_prior_te_": TEXT},
)
HALF_ONETRAINER = Layout(
    "OneTrainer (dotted)",
    False,
    {
        "lora_unet.": UNET,
        "lora_transformer.": UNET,
        "lora_te.": TEXT,
        "lora_te1.": TEXT,
        "lora_te2.": TEXT_2,
        "lora_te3.": TEXT_3,
    },
)
ONETRAINER = Layout(
    "OneTrainer",
    False,
    {
        "unet.": UNET,
        "transformer.": UNET,
        "clip_l.": TEXT,
        "clip_g.": TEXT_2,
        "t5.": TEXT_3,
        "t5xxl.": TEXT_3,
    },
    frozenset({"kohya", ""}),
)
COMFYUI = Layout(
    "ComfyUI",
    False,
    {"diffusion_model.": UNET, "model.diffusion_model.": UNET, "text_encoders.": TEXT},
)
PEFT = Layout("PEFT", False, {"base_model.model.": UNET})
_DIFFUSERS_HEADS = {
    "unet.": UNET,
    "transformer.": UNET,
    "text_encoder.": TEXT,
    "text_encoder_2.": TEXT_2,
    "text_encoder_3.": TEXT_3,
}
DIFFUSERS = Layout("diffusers", False, _DIFFUSERS_HEADS, frozenset({"peft"}))
OLD_DIFFUSERS = Layout(
    "diffusers (older)", False, {**_DIFFUSERS_HEADS, "": UNET}, frozenset({"diffusers"})
)
BARE = Layout("no prefix", False, {**_DIFFUSERS_HEADS, "": UNET})

LAYOUTS = (
    KOHYA,
    KOHYA_OFT,
    LYCORIS,
    OLD_ONETRAINER,
    HALF_ONETRAINER,
    ONETRAINER,
    COMFYUI,
    PEFT,
    DIFFUSERS,
    OLD_DIFFUSERS,
    BARE,
)
"""In order of precedence."""


@dataclass(kw_only=True)
class Layer:
    """An adapted layer and its weights by suffix."""

    name: str
    layout: Layout
    part: str
    dotted: str
    """The name without its prefix, as in the file."""
    path: str
    """The same, flat, without `processor` and the like."""
    weights: dict[str, TensorInfo] = field(default_factory=dict)
    roles: dict[str, TensorInfo] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def key(self, end: str) -> str:
        """The file's key of one of its weights."""
        return self.name + (end if end.startswith("_lora.") else f".{end}")

    @property
    def rank(self) -> int | None:
        """The inner dimension of the first decomposed factor."""
        for role in ("down", "w2_b", "w1_b"):
            if role in self.roles and len(self.roles[role].shape) > 1:
                return self.roles[role].shape[0] or None
        return None

    @property
    def kernel(self) -> tuple[int, ...]:
        """A convolution's kernel size; empty for Linear."""
        roles = (role for role in ("mid", "down", "t2", "diff", "w2") if role in self.roles)
        return next((self.roles[role].shape[2:] for role in roles), ())

    @property
    def width(self) -> int | None:
        """Input features of the base layer, if the weights determine them."""
        if "w1" in self.roles or "lokr_w1_b" in self.weights:
            return _product(self._columns("w1", "w1_b"), self._columns("w2", "w2_b"))
        return self._columns("down", "w1_b", "diff")

    @property
    def height(self) -> int | None:
        """Output features."""
        up = self.roles.get("up") or self.roles.get("diff")
        return up.shape[0] if up and up.shape else None

    def _columns(self, *roles: str) -> int | None:
        shapes = (self.roles[role].shape for role in roles if role in self.roles)
        return next((shape[1] for shape in shapes if len(shape) > 1), None)


def _product(*numbers: int | None) -> int | None:
    return prod(number for number in numbers if number) if all(numbers) else None


SECONDARY = {"alpha", "scale", "rescale", "bias", "reshape", "magnitude"}
"""Roles without an effect alone; checkpoints have such keys too:
single_blocks.0.norm.key_norm.scale.
"""


def layers_in(header: Header) -> dict[str, Layer]:
    """The layers of a LoRA file, by name; empty if it is no LoRA."""
    layers: dict[str, Layer] = {}
    for key, info in header.tensors.items():
        parsed = split_key(key)
        if parsed is None or (
            parsed[1] == "weight" and f"{parsed[0]}.on_input" not in header.tensors
        ):
            continue
        name, text, end = parsed
        if name not in layers:
            layers[name] = _layer(name, end)
        layer = layers[name]
        if (
            layer.layout.styles
            and end.style not in layer.layout.styles
            and end.role not in SECONDARY
        ):
            layer.layout = _layout_of(name, end)[0]
        layer.weights[text] = info
        layer.roles[end.role] = info
        layer.kinds.add(end.kind)
    return {name: layer for name, layer in layers.items() if not layer.roles.keys() <= SECONDARY}


def _layout_of(name: str, end: End) -> tuple[Layout, str]:
    for layout in LAYOUTS:
        for head in layout.heads:
            if (
                name.startswith(head)
                and (not layout.styles or end.style in layout.styles)
                and layout.flat <= ("." not in name)
            ):
                return layout, head
    raise AssertionError("BARE fits every name")


TEXT_PATH = re.compile(r"(text_model_)?encoder_layers_\d+_")
T5_PATH = re.compile(r"(encoder_)?block_\d+_layer_\d+_")
LANGUAGE_PATH = re.compile(r"(model_)*layers_\d+_(self_attn|mlp|linear_attn)_")


def _layer(name: str, end: End) -> Layer:
    layout, head = _layout_of(name, end)
    path, part = name[len(head) :].lstrip("_").replace(".", "_"), layout.heads[head]
    path = path.replace("_processor_to_", "_to_")
    if path.endswith("_to_out") and layout is OLD_DIFFUSERS:
        path += "_0"
    if TEXT_PATH.match(path) and part == UNET:
        part = TEXT
    if part != UNET and path.startswith("encoder_layers_"):
        # transformers 5 has no text_model in the path; the hosts do
        path = "text_model_" + path
    if T5_PATH.match(path):
        part = TEXT_3
    if LANGUAGE_PATH.match(path) and layout in (PEFT, BARE):
        part = "language model"
    return Layer(name=name, layout=layout, part=part, dotted=name[len(head) :], path=path)


# --- families -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraFamily:
    """A model family for which LoRA files exist."""

    id: str
    name: str
    diffusers: re.Pattern[str]
    """Matches diffusers' paths, as opposed to the model's own."""
    version: str = ""
    """Required prefix of ss_base_model_version; otherwise A1111 takes the LoRA for SD1."""


_SD = re.compile(
    r"down_blocks_|mid_block_|up_blocks_|conv_in|conv_out|time_embedding_|add_embedding_"
)
_FLUX = re.compile(
    r"(single_)?transformer_blocks_|time_(text|guidance)_embed_|context_embedder$|x_embedder$|norm_out_|proj_out$|\w+_stream_modulation\w*_linear$"
)
_NEVER = re.compile("(?!)")
FAMILIES: Mapping[str, LoraFamily] = {
    family.id: family
    for family in (
        LoraFamily("sd1", "SD1", _SD),
        LoraFamily("sd2", "SD2", _SD),
        LoraFamily("sdxl", "SDXL", _SD, "sdxl_"),
        LoraFamily(
            "sd3", "SD3", re.compile("transformer_blocks_|time_text_embed_|norm_out_|proj_out$")
        ),
        LoraFamily("flux", "FLUX.1", _FLUX),
        LoraFamily("klein4b", "FLUX.2 klein 4B", _FLUX),
        LoraFamily("klein9b", "FLUX.2 klein 9B", _FLUX),
        LoraFamily("flux2", "FLUX.2 dev", _FLUX),
        LoraFamily("chroma", "Chroma", _FLUX),
        LoraFamily(
            "zimage", "Z-Image", re.compile(r"\w+_\d+_attention_to_|all_x_embedder|all_final_layer")
        ),
        LoraFamily(
            "lumina2",
            "Lumina 2",
            re.compile(
                r"\w+_\d+_(attn_to_|feed_forward_linear_|norm1_linear)|time_caption_embed_|norm_out_"
            ),
        ),
        LoraFamily("qwen", "Qwen-Image", _NEVER),
        LoraFamily(
            "anima",
            "Anima",
            re.compile("transformer_blocks_|patch_embed_|time_embed_|norm_out_|proj_out$"),
        ),
        LoraFamily(
            "wan", "Wan", re.compile(r"blocks_\d+_(attn\d_|ffn_net_)|condition_embedder_|proj_out$")
        ),
        LoraFamily(
            "krea2",
            "Krea 2",
            re.compile(
                r"transformer_blocks_|text_fusion_|time_embed_|time_mod_proj|txt_in_|img_in$|final_layer_"
            ),
        ),
        LoraFamily("hunyuan_video", "HunyuanVideo", _NEVER),
    )
}


@dataclass(frozen=True)
class FamilyMark:
    """A path, and layer sizes, specific to some families."""

    families: tuple[str, ...]
    """Several if names and shapes do not distinguish them."""
    path: re.Pattern[str]
    widths: tuple[int, ...] = ()
    heights: tuple[int, ...] = ()
    stated: tuple[str, ...] = ()
    """Families that have such layers too, and are believed if the metadata names them."""

    def matches(self, layer: Layer) -> bool:
        fits = (not self.widths or layer.width in self.widths) and (
            not self.heights or layer.height in self.heights
        )
        return fits and self.path.match(layer.path) is not None


def _mark(
    families: str,
    path: str,
    *,
    width: tuple[int, ...] = (),
    height: tuple[int, ...] = (),
    stated: str = "",
) -> FamilyMark:
    return FamilyMark(
        tuple(families.split()), re.compile(path), width, height, tuple(stated.split())
    )


_BLOCKS = r"(double|single)_blocks_\d+_"
_FLUX_2 = (
    r"(double|single)_stream_modulation_|\w*attn_to_qkv_mlp_proj|transformer_blocks_\d+_ff(_context)?_linear_|"
    + _BLOCKS
)
_LUMINA = r"(layers|noise_refiner|context_refiner)_\d+_"
MARKS: tuple[FamilyMark, ...] = (
    _mark(
        "hunyuan_video",
        _BLOCKS
        + r"((img|txt)_mlp_fc|(img|txt)_mod_linear|modulation_linear|self_attn_)"
        + r"|txt_in_individual_token_refiner",
    ),
    _mark("klein9b", _FLUX_2, width=(4096,)),
    _mark("flux2", _FLUX_2, width=(6144,)),
    _mark(
        "klein4b",
        r"(double|single)_stream_modulation_|\w*attn_to_qkv_mlp_proj|transformer_blocks_\d+_ff(_context)?_linear_",
        width=(3072,),
    ),
    _mark("klein4b", r"single_blocks_\d+_linear2", width=(12288,)),
    _mark("klein4b", r"single_blocks_\d+_linear1", height=(27648,)),
    _mark("klein4b", r"double_blocks_\d+_(img|txt)_mlp_0", height=(18432,)),
    _mark("klein4b", r"double_blocks_\d+_(img|txt)_mlp_2", width=(9216,)),
    _mark("chroma", "distilled_guidance_layer_"),
    _mark(
        "flux",
        _BLOCKS
        + r"((img|txt)_mod_lin$|modulation_lin$)|guidance_in_|vector_in_|time_text_embed_guidance",
    ),
    _mark("flux", r"single_transformer_blocks_\d+_norm_linear"),
    _mark("flux chroma", r"single_blocks_\d+_linear2", width=(15360,)),
    _mark("flux chroma", r"single_blocks_\d+_linear1", height=(21504,)),
    _mark("flux chroma", r"double_blocks_\d+_(img|txt)_mlp_0", height=(12288,)),
    _mark("flux chroma", r"double_blocks_\d+_(img|txt)_mlp_2", width=(12288,)),
    # the attention of klein 4B's double blocks has the same names and shapes
    _mark("flux chroma", _BLOCKS + "|single_transformer_blocks_", stated="klein4b"),
    _mark("qwen", r"transformer_blocks_\d+_(img_mlp|txt_mlp|img_mod_1|txt_mod_1)"),
    _mark("qwen", r"transformer_blocks_(19|[2-5]\d)_attn_(to|add)_", width=(3072,)),
    _mark("flux chroma", r"transformer_blocks_\d+_(ff_context_net|norm1)_", width=(3072,)),
    _mark("flux chroma klein4b qwen", r"transformer_blocks_\d+_attn_(to|add)_", width=(3072,)),
    _mark("sd3", r"joint_blocks_\d+_"),
    _mark("sd3", r"transformer_blocks_\d+_(attn2?_(to|add)_|ff_)", width=(1536, 2432)),
    _mark(
        "anima",
        r"blocks_\d+_(adaln_modulation_|(self|cross)_attn_(q|k|v|output)_proj$|mlp_layer[12]$)|llm_adapter_",
    ),
    _mark("anima", r"transformer_blocks_\d+_(norm\d_linear_[12]$)"),
    _mark("anima", r"transformer_blocks_\d+_attn2_to_[kv]$", width=(1024,)),
    _mark(
        "wan",
        r"blocks_\d+_((self|cross)_attn_(q|k|v|o|k_img|v_img)$|ffn_[02]$|attn[12]_(to|add)_|ffn_net_)",
    ),
    _mark("krea2", r"blocks_\d+_attn_(wq|wk|wv|wo|gate)$|txtfusion_|text_fusion_"),
    _mark("zimage", _LUMINA, width=(3840,)),
    _mark("lumina2", _LUMINA, width=(2304,)),
    _mark("sdxl", r"label_emb_|add_embedding_"),
    _mark("sdxl", r"(input|middle|output|down|mid|up)_blocks?_\w*_transformer_blocks_[1-9]"),
)
"""In order of precedence; one matching layer is enough. For UNets, see TEXT_WIDTHS."""

SD_PATH = re.compile(
    r"(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks|time_embed|conv_in|conv_out|out_2)"
)
TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text states in a UNet's cross attention -> family."""
CROSS_ATTENTION = re.compile(r"\w*attn2_to_[kv]$")

FAMILY_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"sdxl_|stable-diffusion-xl"), "sdxl"),
    (re.compile(r"stable-diffusion-v2|sd_v2"), "sd2"),
    (re.compile(r"stable-diffusion-v1|sd_v1"), "sd1"),
    (re.compile(r"chroma"), "chroma"),
    (re.compile(r"flux.?2.*klein.*9b"), "klein9b"),
    (re.compile(r"flux.?2.*klein"), "klein4b"),
    (re.compile(r"flux.?2"), "flux2"),
    (re.compile(r"flux"), "flux"),
    (re.compile(r"z.?image"), "zimage"),
    (re.compile(r"lumina"), "lumina2"),
    (re.compile(r"qwen"), "qwen"),
    (re.compile(r"anima"), "anima"),
    (re.compile(r"wan"), "wan"),
    (re.compile(r"sd3|stable-diffusion-(v)?3"), "sd3"),
    (re.compile(r"krea.?2"), "krea2"),
)
"""Patterns for the start of ss_base_model_version and modelspec.architecture."""


def families_of(
    layers: Mapping[str, Layer], metadata: Mapping[str, str]
) -> tuple[tuple[str, ...], str]:
    """(possible families, the evidence). Names and shapes first; metadata decides between several,
    and between UNets.
    """
    denoiser = [layer for layer in layers.values() if layer.part == UNET]
    mark = next((mark for mark in MARKS if any(mark.matches(layer) for layer in denoiser)), None)
    marked = mark.families if mark else ()
    stated = stated_family(metadata)
    if stated and (mark is None or stated in mark.families + mark.stated):
        return (stated,), "metadata"
    if marked:
        return marked, "names and shapes of its layers"
    widths = {
        layer.width
        for layer in denoiser
        if CROSS_ATTENTION.match(layer.path) and SD_PATH.match(layer.path)
    } - {None}
    if any(layer.part == TEXT_2 for layer in layers.values()):
        return ("sdxl",), "two text encoders"
    if len(widths) == 1 and (width := widths.pop()) in TEXT_WIDTHS:
        return (TEXT_WIDTHS[width],), f"text states of {width} numbers"
    if any(SD_PATH.match(layer.path) for layer in denoiser):
        return ("sd1", "sd2", "sdxl"), "a UNet's names"
    texts = {
        layer.width
        for layer in layers.values()
        if layer.name.startswith("lora_te_") and "mlp_fc1" in layer.path
    }
    if not denoiser and len(texts) == 1 and (width := texts.pop()) in (768, 1024):
        return (TEXT_WIDTHS[width],), f"a text encoder of {width} numbers"
    return (), ""


def stated_family(metadata: Mapping[str, str]) -> str | None:
    """The family that a LoRA's metadata names, or None."""
    if metadata.get("ss_v2") == "True":
        return "sd2"
    words = [
        metadata.get(key, "").lower()[:200]
        for key in ("ss_base_model_version", "modelspec.architecture")
    ]
    return next(
        (family for pattern, family in FAMILY_PATTERNS for word in words if pattern.match(word)),
        None,
    )


# --- hosts ----------------------------------------------------------------------------------------

Form = Literal["native", "diffusers", "processor", "text"]
"""Origin of a layer's path. processor: diffusers' in the form Forge expects, with `.processor.`
inside attention. text: a text encoder's.
"""


def form_of(layer: Layer, family: str) -> Form:
    if layer.part != UNET:
        return "text"
    if not FAMILIES[family].diffusers.match(layer.path):
        return "native"
    old = (
        not layer.layout.flat
        and family in SD
        and (".processor." in layer.name or ".to_" not in layer.name)
    )
    return "processor" if old else "diffusers"


SD = frozenset({"sd1", "sd2", "sdxl"})

"""How often the check is right: precision and recall on images that were spoiled on purpose.

    python -m tests.benchmark.check_quality                        drawn images, and the sample
                                                                   images of installed packages
    python -m tests.benchmark.check_quality --images FOLDER      and those of a folder of good
                                                                   images, 500 pixels or larger
    python -m tests.benchmark.check_quality --half tune            the half that the thresholds were
                                                                   chosen on

Each source is good as it is: flat drawings (the demo's world, enlarged), drawings on white paper,
dead leaves (overlapping shaded shapes of all sizes, which share the statistics of photographs), and
photographs that scikit-image, scikit-learn, matplotlib, imgaug and ultralytics bring along, where
they are installed. Each is spoiled in every way of `WAYS`, saved, and checked through the same code
as a dataset. Sources, not images, are halved by a hash of their name: what was tuned on one half
is reported on the other. Hard ones are among the good: bokeh, grain, dusk, pale colours, gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import random
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
    from lora_trainer import environment

    environment.activate()

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from lora_trainer.dataset.check.image_findings import CheckedImage, findings_of_image
from lora_trainer.dataset.check.measure import Measures, measure_all
from lora_trainer.dataset.check.similarity import near_duplicates
from lora_trainer.demo import world
from tests.embedded.scenes import drawings

RESOLUTION = 512
MIN_SIDE, MOST_SIDE = 450, 700
PACKAGED = {
    "skimage": [
        "data/astronaut.png",
        "data/brick.png",
        "data/camera.png",
        "data/coffee.png",
        "data/grass.png",
        "data/gravel.png",
        "data/ihc.png",
        "data/logo.png",
        "data/motorcycle_left.png",
        "data/retina.jpg",
        "data/rocket.jpg",
        "data/hubble_deep_field.jpg",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
    "imgaug": ["quokka.jpg"],
    "ultralytics": ["assets/bus.jpg", "assets/zidane.jpg"],
}
"""Sharp images without borders or lettering, by package."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A good image. Those of one `group` (views of one scene) are in the same half."""

    group: str
    image: Image.Image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image file and the kind of finding that is right for it; "" where nothing is to be
    found.
    """

    path: Path
    kind: str
    way: str


# --- sources --------------------------------------------------------------------------------------


def drawn_sources(count: int, side: int = 640) -> Iterator[Source]:
    """Three kinds of drawing in turn, each with its own seed."""
    scenes, seen = drawings(7, 8), set()
    for number in range(count):
        rng = random.Random(f"drawn {number}")
        if number % 3 == 0:
            scene = next(
                each.scene
                for each in scenes
                if (each.scene.shape, each.scene.position, each.scene.size) not in seen
            )
            seen.add((scene.shape, scene.position, scene.size))
            yield Source(group=f"flat {number}", image=flat(scene, side))
        elif number % 3 == 1:
            yield Source(group=f"paper {number}", image=on_paper(rng, side))
        else:
            yield Source(group=f"leaves {number}", image=dead_leaves(rng, side))


def flat(scene: world.Scene, side: int) -> Image.Image:
    """The demo's world with edges that stay sharp at any size."""
    inside = world.cover(world.outline_distance(scene, world.Jitter(), side), 2 * world.SIDE / side)
    return world.to_image(
        world.paint(
            world.plain_canvas(world.PALETTE[scene.background], side),
            world.PALETTE[scene.colour],
            inside,
        )
    )


def on_paper(rng: random.Random, side: int) -> Image.Image:
    """Lines and filled shapes on white, with wide margins."""
    image = Image.new("RGB", (2 * side, 2 * side), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(6, 14)):
        points = [
            (rng.randint(side // 3, 5 * side // 3), rng.randint(side // 3, 5 * side // 3))
            for _ in range(rng.randint(3, 6))
        ]
        colour = tuple(rng.randint(0, 220) for _ in range(3))
        if rng.random() < 0.4:
            draw.polygon(points, fill=colour, outline="black", width=4)
        else:
            draw.line(points, fill="black", width=rng.randint(3, 10), joint="curve")
    return image.resize((side, side), Image.Resampling.LANCZOS)


def dead_leaves(rng: random.Random, side: int) -> Image.Image:
    """Overlapping shaded ellipses with a power law of sizes, and grain."""
    image = Image.new("RGB", (2 * side, 2 * side), tuple(rng.randint(30, 200) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    base = [rng.uniform(40, 200) for _ in range(3)]
    for _ in range(900):
        radius = min(0.4, 0.012 / (rng.random() + 0.02)) * side * 2
        x, y, squeeze = rng.uniform(0, 2 * side), rng.uniform(0, 2 * side), rng.uniform(0.5, 1.5)
        light = rng.gauss(0, 45)
        colour = tuple(int(min(255, max(0, level + light + rng.gauss(0, 20)))) for level in base)
        draw.ellipse(
            (x - radius, y - radius * squeeze, x + radius, y + radius * squeeze), fill=colour
        )
    pixels = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS), np.float32)
    grain = np.random.default_rng(rng.randrange(2**31)).normal(0, 3, pixels.shape[:2])[..., None]
    shade = 1 - 0.35 * np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.clip(pixels * shade + grain, 0, 255).astype(np.uint8), "RGB")


def packaged_sources() -> Iterator[Source]:
    """The sample images of installed packages, none of which is imported."""
    for package, names in PACKAGED.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for name in names:
                if Path(folder, name).is_file():
                    yield Source(
                        group=f"{package} {name}", image=sized(Image.open(Path(folder, name)))
                    )


def folder_sources(folder: Path) -> Iterator[Source]:
    """The images of a folder; what is in front of a last hyphen names the group: fox-1.png and
    fox-2.png.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            yield Source(group=path.stem.rsplit("-", 1)[0], image=sized(Image.open(path)))


def sized(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    scale = min(1.0, MOST_SIDE / (image.width * image.height) ** 0.5)
    return (
        image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
        if scale < 1
        else image
    )


def is_good(image: Image.Image) -> bool:
    """Large enough, and no strip."""
    return (image.width * image.height) ** 0.5 >= MIN_SIDE and max(image.size) < 1.9 * min(
        image.size
    )


def in_half(group: str, half: str) -> bool:
    return (zlib.crc32(group.encode()) % 2 == 0) == (half == "tune")


# --- ways to spoil an image ----------------------------------------------------------------------

Way = Callable[[Image.Image, random.Random], Image.Image]


def graded(image: Image.Image, gain: float, lift: float = 0.0) -> Image.Image:
    """Every level times `gain`, plus `lift`."""
    return image.point([int(min(255, level * gain + lift)) for level in range(256)] * 3)


def unit(image: Image.Image) -> float:
    """Pixels of this image for each pixel of it when trained."""
    return max(1.0, (image.width * image.height) ** 0.5 / RESOLUTION)


def blurred(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(unit(image) * rng.uniform(2, 5)))


def enlarged(image: Image.Image, rng: random.Random) -> Image.Image:
    """As from a thumbnail."""
    factor = rng.uniform(4, 7)
    small = image.resize(
        (round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS
    )
    return small.resize(image.size, Image.Resampling.BICUBIC)


def shaken(image: Image.Image, rng: random.Random) -> Image.Image:
    length, across = round(unit(image) * rng.uniform(12, 24)), rng.random() < 0.5
    pixels = np.asarray(image, np.float32)
    total = sum(np.roll(pixels, step, axis=1 if across else 0) for step in range(length))
    return Image.fromarray((total / length).astype(np.uint8), "RGB").crop(
        (length, length, image.width, image.height)
    )


def grained(image: Image.Image, rng: random.Random, strength: float = 8.0) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(2**31)).normal(
        0, strength, (image.height, image.width, 3)
    )
    return Image.fromarray(
        np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8), "RGB"
    )


def blurred_and_grained(image: Image.Image, rng: random.Random) -> Image.Image:
    return grained(blurred(image, rng), rng, 3.0)


def small(image: Image.Image, rng: random.Random) -> Image.Image:
    side = RESOLUTION / rng.uniform(1.5, 3)
    scale = side / (image.width * image.height) ** 0.5
    return image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
    )


def framed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Bars at two sides or a frame at four, in a colour the image's edge does not have."""
    edge = np.asarray(image, np.float32)[[0, -1]].mean(axis=(0, 1))
    choices = [(0, 0, 0), (255, 255, 255), (40, 60, 90), (200, 190, 170)]
    colour = rng.choice([each for each in choices if np.abs(np.array(each) - edge).max() > 90])
    aside, above = rng.choice([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
    width, height = (
        round(image.width * aside * rng.uniform(0.05, 0.15)),
        round(image.height * above * rng.uniform(0.05, 0.15)),
    )
    return ImageOps.expand(image, (width, height, width, height), colour)


def strip(image: Image.Image, rng: random.Random) -> Image.Image:
    """Its middle, enlarged so that it is long, but not small."""
    ratio = rng.uniform(2.2, 4)
    wide = rng.random() < 0.5
    width, height = (
        (image.width, round(image.width / ratio))
        if wide
        else (round(image.height / ratio), image.height)
    )
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    scale = max(1.0, RESOLUTION / (width * height) ** 0.5)
    return image.crop((left, top, left + width, top + height)).resize(
        (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
    )


def signed(image: Image.Image, rng: random.Random) -> Image.Image:
    """A line of lettering along the upper or lower edge: opaque or see-through."""
    text = rng.choice(
        [
            "© photographer.com",
            "www.stockpics.net",
            "App Morning 2021",
            "sample - not for sale",
            "2019/07/14 12:30",
            "@artist_name",
        ]
    )
    size = round(image.height * rng.uniform(0.03, 0.06))
    font = ImageFont.load_default(size)
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    length = draw.textlength(text, font)
    x = rng.choice(
        [0.03 * image.width, image.width - length - 0.03 * image.width, (image.width - length) / 2]
    )
    y = rng.choice([image.height - 1.7 * size, image.height - 1.7 * size, 0.02 * image.height])
    ground = np.asarray(image.convert("L"), np.float32)[
        int(y) : int(y) + size, max(0, int(x)) : int(x + length)
    ].mean()
    ink = rng.choice([(255, 255, 255), (255, 230, 0)]) if ground < 140 else (10, 10, 10)
    draw.text((x, y), text, font=font, fill=(*ink, rng.choice([255, 200, 150])))
    result = image.copy()
    result.paste(layer, (0, 0), layer)
    return result


def bokeh(image: Image.Image, rng: random.Random) -> Image.Image:
    """Sharp within a disc, blurred around it."""
    radius = min(image.size) * rng.uniform(0.25, 0.35)
    mask = Image.new("L", image.size)
    x, y = image.width / 2, image.height / 2
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(20))
    return Image.composite(image, image.filter(ImageFilter.GaussianBlur(7 * unit(image))), mask)


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    share = rng.uniform(0.01, 0.05)
    left, top = rng.uniform(0, share) * image.width, rng.uniform(0, share) * image.height
    return image.crop(
        (
            int(left),
            int(top),
            int(left + (1 - share) * image.width),
            int(top + (1 - share) * image.height),
        )
    )


def saved_badly(image: Image.Image, rng: random.Random) -> Image.Image:
    stream = io.BytesIO()
    image.resize((round(image.width * 0.8), round(image.height * 0.8))).save(
        stream, "JPEG", quality=rng.randint(35, 60)
    )
    return Image.open(stream).convert("RGB")


WAYS: dict[str, tuple[str, Way]] = {
    "as it is": ("", lambda image, rng: image),
    "grain": ("", grained),
    "bokeh": ("", bokeh),
    "dusk": ("", lambda image, rng: graded(image, 0.62)),
    "pale": (
        "",
        lambda image, rng: image.point(
            [round(255 * (level / 255) ** 0.8) for level in range(256)] * 3
        ),
    ),
    "blur": ("blurred-image", blurred),
    "blur and grain": ("blurred-image", blurred_and_grained),
    "shaken": ("blurred-image", shaken),
    "enlarged": ("blurred-image", enlarged),
    "small": ("small-image", small),
    "framed": ("wide-border", framed),
    "strip": ("extreme-aspect", strip),
    "signed": ("lettering", signed),
    "underexposed": ("too-dark", lambda image, rng: graded(image, rng.uniform(0.12, 0.33))),
    "overexposed": ("too-bright", lambda image, rng: graded(image, rng.uniform(2.2, 3.5))),
    "washed out": ("too-bright", lambda image, rng: graded(image, 0.4, 150)),
    "hazy": ("low-contrast", lambda image, rng: graded(image, rng.uniform(0.12, 0.25), 100)),
}
COPIES: dict[str, Way] = {
    "saved badly": saved_badly,
    "cropped": cropped,
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "mirrored and cropped": lambda image, rng: ImageOps.mirror(cropped(image, rng)),
    "lightened": lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.uniform(1.1, 1.25)),
    "turned grey": lambda image, rng: image.convert("L").convert("RGB"),
}
DRAWINGS_CANNOT = {"overexposed", "washed out", "underexposed", "hazy"}
"""A flat drawing in other colours is another drawing; light and haze are told on photographs and
dead leaves.
"""


# --- counting -------------------------------------------------------------------------------------


def make_samples(
    sources: Iterable[Source], folder: Path, ways: Iterable[str] = tuple(WAYS)
) -> list[Sample]:
    samples = []
    for number, source in enumerate(sources):
        for way in ways:
            kind, spoil = WAYS[way]
            if way in DRAWINGS_CANNOT and source.group.startswith(("flat", "paper")):
                continue
            rng = random.Random(f"{source.group} {number} {way}")
            samples.append(
                Sample(
                    path=_save(spoil(source.image, rng), folder / f"{number:03d} {way}", rng),
                    kind=kind,
                    way=way,
                )
            )
    return samples


def make_copies(sources: Iterable[Source], folder: Path) -> list[tuple[Path, Path]]:
    """(image, original) for each copy, and (original, original) for each original."""
    pairs = []
    for number, source in enumerate(sources):
        rng = random.Random(f"copies {source.group} {number}")
        original = _save(source.image, folder / f"{number:03d} original", rng)
        pairs.append((original, original))
        for way in rng.sample(sorted(COPIES), 2):
            pairs.append(
                (
                    _save(COPIES[way](source.image, rng), folder / f"{number:03d} {way}", rng),
                    original,
                )
            )
    return pairs


def _save(image: Image.Image, stem: Path, rng: random.Random) -> Path:
    """Every other one as JPEG, as people have them."""
    if rng.random() < 0.5:
        image.save(stem.with_name(stem.name + ".png"))
        return stem.with_name(stem.name + ".png")
    image.save(stem.with_name(stem.name + ".jpg"), quality=92)
    return stem.with_name(stem.name + ".jpg")


@dataclass(kw_only=True)
class Score:
    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.wrong)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)


def score_samples(samples: list[Sample], verbose: bool = False) -> dict[str, Score]:
    """A score for each kind of finding: each sample is checked for all kinds, and only its own is
    right.
    """
    measured = measure_all([sample.path for sample in samples])
    scores = {kind: Score() for kind, _ in WAYS.values() if kind}
    mistakes: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        measures = measured[sample.path]
        assert isinstance(measures, Measures), measures
        picture = CheckedImage(path=sample.path, name=sample.path.name)
        found = {finding.kind for finding in findings_of_image(picture, measures, RESOLUTION)}
        for kind, score in scores.items():
            if kind == sample.kind:
                score.right += kind in found
                score.missed += kind not in found
                mistakes[sample.way, "missed"] += kind not in found
            elif kind in found:
                score.wrong += 1
                mistakes[sample.way, kind] += 1
                if verbose:
                    print(f"  {sample.path.name}: {kind}")
    if verbose:
        print(
            "  "
            + ", ".join(
                f"{way}: {what} {count}" for (way, what), count in sorted(mistakes.items()) if count
            )
        )
    return scores


def score_copies(pairs: list[tuple[Path, Path]], verbose: bool = False) -> Score:
    """Each image but the best of its cluster is named: right if that cluster holds another
    version of the same original.
    """
    measured = measure_all([path for path, _ in pairs])
    members = [(CheckedImage(path=path, name=path.name), measured[path]) for path, _ in pairs]
    original = dict(pairs)
    copies = Counter(original.values())
    score = Score()
    found: Counter[Path] = Counter()
    for finding in near_duplicates(members):  # type: ignore[arg-type]
        best, path = finding.related[0], finding.path
        assert path is not None
        is_right = original[best] == original[path]
        score.right += is_right
        score.wrong += not is_right
        found[original[path]] += is_right
        if verbose and not is_right:
            print(f"  {path.name} taken for {best.name}")
    # of n versions, n - 1 are to be named
    score.missed = sum(count - 1 - found[first] for first, count in copies.items())
    return score


def table(scores: dict[str, Score]) -> str:
    lines = [
        "| kind | true positives | false positives | missed | precision | recall |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {kind} | {score.right} | {score.wrong} | {score.missed} | {score.precision:.2f} |"
        f" {score.recall:.2f} |"
        for kind, score in scores.items()
    ]
    return "\n".join(lines)


def run(sources: list[Source], verbose: bool = False) -> tuple[int, dict[str, Score]]:
    """(number of labelled images, score by kind)."""
    with tempfile.TemporaryDirectory(prefix="check-quality-") as folder:
        samples = make_samples(sources, Path(folder))
        copies_folder = Path(folder, "copies")
        copies_folder.mkdir()
        pairs = make_copies(sources, copies_folder)
        scores = score_samples(samples, verbose)
        scores["near-duplicate"] = score_copies(pairs, verbose)
    return len(samples) + len(pairs), scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="good images of your own, 500 pixels or larger",
    )
    parser.add_argument(
        "--drawn", type=int, default=60, help="how many images are drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--half",
        choices=["tune", "report"],
        default="report",
        help="which half of the sources (default: %(default)s)",
    )
    parser.add_argument("--verbose", action="store_true", help="name each mistake")
    asked = parser.parse_args()
    sources = [
        *drawn_sources(asked.drawn),
        *packaged_sources(),
        *(folder_sources(asked.previews) if asked.previews else []),
    ]
    sources = [each for each in sources if is_good(each.image) and in_half(each.group, asked.half)]
    count, scores = run(sources, asked.verbose)
    print(f"{len(sources)} sources, {count} images, resolution {RESOLUTION}\n\n{table(scores)}")


if __name__ == "__main__":
    main()

"""Whatever an image file holds, an upright 8-bit RGB image comes out, or a sentence."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageCms, ImageFilter, features

from lora_trainer.dataset import images
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.images import (
    LIMIT_VARIABLE,
    convert,
    digest,
    examine,
    fit,
    foreign_form,
    image_size,
    max_megapixels,
    read_image,
    readable_suffixes,
    suffix_of,
    write_reduced,
)
from lora_trainer.errors import DatasetError
from tests.dataset.pictures import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    corners,
    noise,
    png,
    png_chunk,
    save,
    tiff,
)

HEIC = ".heic" in readable_suffixes()
AVIF = pytest.param(
    ".avif",
    marks=pytest.mark.skipif(
        ".avif" not in readable_suffixes(), reason="this Pillow reads no AVIF"
    ),
)


def colour(path: Path, background: str = "white") -> tuple[int, ...]:
    image = read_image(path, background)
    assert image.mode == "RGB"
    return image.getpixel((3, 3))


def near(one: tuple[int, ...], other: tuple[int, ...], tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", AVIF])
def test_every_format_gives_its_colour_back(tmp_path, suffix):
    path = save(tmp_path / f"狐 狸{suffix}", colour=(200, 100, 50))
    assert near(colour(path), (200, 100, 50))
    assert image_size(path) == (96, 64)
    assert (examine(path).width, examine(path).height) == (96, 64)


def test_the_content_counts_not_the_suffix(tmp_path):
    path = save(tmp_path / "a.webp")
    assert colour(path.rename(tmp_path / "a.jpg")) == colour(save(tmp_path / "b.webp"))


# --- more than 8 bits -----------------------------------------------------------------------------


def grey(path: Path) -> list[int]:
    image = read_image(path)
    assert all(
        red == green == blue
        for red, green, blue in zip(
            *(image.getchannel(band).tobytes() for band in "RGB"), strict=True
        )
    )
    return list(image.getchannel("R").tobytes())


def test_a_16_bit_grey_png_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 1, 16, 0, struct.pack(">4H", 0, 300, 32896, 65535)))
    assert grey(path) == [0, 1, 128, 255]


def test_a_16_bit_rgb_png_is_scaled(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 1, 16, 2, struct.pack(">3H", 65535, 25700, 0)))
    assert read_image(path).getpixel((0, 0)) == (255, 100, 0)


def test_a_16_bit_rgba_png_lies_on_the_background(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, 6, struct.pack(">8H", 65535, 0, 0, 65535, 65535, 0, 0, 0)))
    image = read_image(path, "#0000ff")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [RED, BLUE]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_16_bit_grey_tiff_is_scaled_in_both_byte_orders(tmp_path, mode):
    order = ">" if mode.endswith("B") else "<"
    Image.frombytes(mode, (4, 1), struct.pack(f"{order}4H", 0, 300, 32896, 65535)).save(
        tmp_path / "a.tif"
    )
    assert grey(tmp_path / "a.tif") == [0, 1, 128, 255]


def test_a_16_bit_rgb_tiff_is_scaled(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(1, 1, channels=3, bits=16, pixels=struct.pack("<3H", 65535, 25700, 0)))
    assert read_image(path).getpixel((0, 0)) == (255, 100, 0)


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.5, 1.0), (0.0, 127.5, 255.0), (0.0, 0.75, 1.5), (-1.0, 0.5, 1.0)],
    ids=["to 1", "to 255", "highlights above 1", "negative"],
)
def test_a_floating_point_tiff_is_scaled_to_its_white(tmp_path, values):
    Image.frombytes("F", (3, 1), struct.pack("=3f", *values)).save(tmp_path / "a.tif")
    assert grey(tmp_path / "a.tif") == [0, 128, 255]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_floating_point_tiff_with_pixels_that_are_no_numbers_is_refused_by_whoever_opens_it(
    tmp_path, value, place
):
    values = [0.25, 0.5, 0.75]
    values[place] = float(value)
    path = tmp_path / "a.tif"
    Image.frombytes("F", (3, 1), struct.pack("=3f", *values)).save(path)
    for read in (
        examine,
        read_image,
        lambda path: write_reduced(path, tmp_path / "small.webp", 100),
    ):
        with pytest.raises(DatasetError) as caught:
            read(path)
        assert str(caught.value) == f"{path} has NaN or infinite pixels (1 of them)"


@pytest.mark.parametrize(
    ("channels", "bits", "sample_format", "kind"),
    [
        (3, 32, 3, "3 x 32 bits, floating point"),
        (1, 16, 3, "1 x 16 bits, floating point"),
        (1, 64, 1, "1 x 64 bits"),
    ],
)
def test_a_sound_tiff_of_an_unusual_kind_is_not_called_damaged(
    tmp_path, channels, bits, sample_format, kind
):
    path = tmp_path / "a.tif"
    path.write_bytes(
        tiff(
            2,
            2,
            channels=channels,
            bits=bits,
            pixels=bytes(4 * channels * bits // 8),
            sample_format=sample_format,
        )
    )
    for read in (examine, read_image, image_size):
        with pytest.raises(
            DatasetError, match="is a TIFF of a kind that is not supported"
        ) as caught:
            read(path)
        assert caught.value.message.values["kind"] == kind


def test_an_uncompressed_ycbcr_tiff_is_not_called_cut_off(tmp_path):
    Image.new("YCbCr", (8, 8)).save(tmp_path / "a.tif")
    for read in (examine, read_image):
        with pytest.raises(DatasetError, match=r"not supported \(YCbCr without compression\)"):
            read(tmp_path / "a.tif")


def test_a_32_bit_integer_tiff_is_scaled_to_its_white(tmp_path):
    Image.frombytes("I", (3, 1), struct.pack("=3i", 0, 32896, 65535)).save(tmp_path / "a.tif")
    assert grey(tmp_path / "a.tif") == [0, 128, 255]


# --- other colour models --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_not_inverted(tmp_path, suffix):
    """Pillow writes CMYK JPEGs the way Adobe does, inverted and marked."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a{suffix}")
    assert near(colour(tmp_path / f"a{suffix}"), RED)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("1", 1, WHITE), ("L", 77, (77, 77, 77)), ("LA", (77, 255), (77, 77, 77))],
)
def test_greys_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (8, 8), value).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png") == expected


BACKGROUNDS = [
    ("white", WHITE),
    ("black", (0, 0, 0)),
    ("grey", (128, 128, 128)),
    ("#f0e8d0", (240, 232, 208)),
]


@pytest.mark.parametrize(("background", "expected"), BACKGROUNDS)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_background_shows_through(tmp_path, mode, background, expected):
    Image.new(mode, (8, 8), (0,) * len(mode)).save(tmp_path / "a.png")
    assert colour(tmp_path / "a.png", background) == expected


def test_half_transparent_is_half_way_to_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert near(colour(tmp_path / "a.png"), (255, 127, 127), 1)


def test_a_palette_with_a_transparent_entry_lies_on_the_background(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (4, 0, 8, 8))
    image.save(tmp_path / "a.png", transparency=1)
    read = read_image(tmp_path / "a.png", "#0000ff")
    assert (read.getpixel((0, 0)), read.getpixel((7, 0))) == (RED, BLUE)


def test_a_transparent_colour_of_an_rgb_png_lies_on_the_background(tmp_path):
    corners().save(tmp_path / "a.png", transparency=RED)
    assert colour(tmp_path / "a.png", "black") == (0, 0, 0)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), shade) for shade in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    assert colour(tmp_path / f"a{suffix}") == RED
    assert examine(tmp_path / f"a{suffix}").width == 16


# --- orientation and colour profiles --------------------------------------------------------------

# what a camera held in each way stores of one and the same scene: the inverse of what EXIF asks for
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[0x0112] = orientation
    return values


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", AVIF])
def test_pictures_come_out_upright(tmp_path, suffix, orientation):
    path, method = tmp_path / f"a{suffix}", STORED[orientation]
    stored = corners().transpose(method) if method is not None else corners()
    stored.save(
        path, exif=exif(orientation), **({} if suffix in (".png", ".tif") else {"quality": 95})
    )
    image = read_image(path)
    assert image.size == image_size(path) == (examine(path).width, examine(path).height) == (32, 16)
    shades = [image.getpixel(place) for place in ((4, 4), (28, 4), (4, 12), (28, 12))]
    assert all(
        near(shade, expected, 60)
        for shade, expected in zip(shades, (RED, GREEN, BLUE, WHITE), strict=True)
    ), shades


def heic(path: Path, orientation: int = 1, **options: object) -> Path:
    """An image as a phone writes it. Skips where no encoder is installed."""
    encoder = pytest.importorskip("pillow_heif")
    method = STORED[orientation]
    stored = corners() if method is None else corners().transpose(method)
    encoder.from_pillow(stored).save(path, quality=95, exif=exif(orientation).tobytes(), **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_picture_is_upright(tmp_path, orientation):
    path = heic(tmp_path / "a.heic", orientation)
    assert {".heic", ".heif"} <= readable_suffixes() and suffix_of(path) == ".heic"
    image = read_image(path)
    assert image.size == image_size(path) == (examine(path).width, examine(path).height) == (32, 16)
    shades = [image.getpixel(place) for place in ((4, 4), (28, 4), (4, 12), (28, 12))]
    assert all(
        near(shade, expected, 60)
        for shade, expected in zip(shades, (RED, GREEN, BLUE, WHITE), strict=True)
    ), shades


def test_a_heic_picture_that_is_cut_off_gets_a_sentence(tmp_path):
    path = heic(tmp_path / "a.heic")
    path.write_bytes(path.read_bytes()[:-40])
    for read in (read_image, examine):
        with pytest.raises(DatasetError, match=r"cut off|damaged"):
            read(path)


def place_taken() -> Image.Exif:
    """EXIF of an image that lies on its side, taken at a place."""
    found = exif(6)
    found.get_ifd(0x8825)[2] = (48.0, 51.0, 30.0)
    return found


def test_a_copy_is_upright_a_jpeg_of_full_colour_and_tells_no_place(tmp_path):
    encoder = pytest.importorskip("pillow_heif")
    stored = corners().transpose(STORED[6])
    path = tmp_path / "a.heic"
    encoder.from_pillow(stored).save(
        path, quality=100, exif=place_taken().tobytes(), xmp=b"<x:xmpmeta>48,51.5N</x:xmpmeta>"
    )
    copy = convert(path, tmp_path / "made")
    assert copy == tmp_path / "made.jpg"
    with Image.open(copy) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (32, 16), "RGB")
        assert not image.getexif() and not {"xmp", "icc_profile", "exif"} & image.info.keys()
        # no colour is shared between neighbours
        assert [part[1:3] for part in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        shades = [image.getpixel(place) for place in ((4, 4), (28, 4), (4, 12), (28, 12))]
    assert all(
        near(shade, expected, 30)
        for shade, expected in zip(shades, (RED, GREEN, BLUE, WHITE), strict=True)
    ), shades


def test_a_transparent_picture_is_copied_as_png_and_an_opaque_one_as_jpeg(tmp_path):
    for name, alpha in (("clear.webp", 99), ("opaque.webp", 255)):
        Image.new("RGBA", (8, 8), (*RED, alpha)).save(
            tmp_path / name, lossless=True, exif=place_taken(), icc_profile=swapped_profile()
        )
    assert convert(tmp_path / "opaque.webp", tmp_path / "opaque") == tmp_path / "opaque.jpg"
    copy = convert(tmp_path / "clear.webp", tmp_path / "clear.v1")
    assert copy == tmp_path / "clear.v1.png"
    with Image.open(copy) as image:
        # the profile, in which red and blue have changed places, is applied and gone
        pixel = image.getpixel((3, 3))
        assert near(pixel[:3], BLUE) and pixel[3] == 99
        assert not image.getexif() and "icc_profile" not in image.info


def test_what_cannot_be_copied_is_a_sentence_and_leaves_nothing(tmp_path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r"cut off|damaged"):
        convert(tmp_path / "a.png", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x14ftypisom\0\0\0\0isom", ""),
        (b"\xff\xd8\xff\xe0", ""),
        (b"", ""),
    ],
)
def test_what_another_process_can_decode_is_told_by_its_first_bytes(
    tmp_path, monkeypatch, head, form
):
    (tmp_path / "a.jpg").write_bytes(head)
    monkeypatch.setattr(images, "_readable_formats", lambda: ("JPEG", "PNG"))
    assert foreign_form(tmp_path / "a.jpg") == form
    monkeypatch.setattr(images, "_readable_formats", lambda: ("JPEG", "PNG", "AVIF", "HEIF"))
    assert foreign_form(tmp_path / "a.jpg") == ""


def test_an_orientation_that_does_not_exist_is_left_aside(tmp_path):
    corners().save(tmp_path / "a.jpg", exif=exif(9))
    assert read_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg") == (32, 16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_refuse_a_sound_picture(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert near(colour(tmp_path / "a.jpg"), (200, 100, 50))


def swapped_profile() -> bytes:
    """An RGB profile in which red and blue have changed places."""
    data = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        .tobytes()
        .replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    )
    entries = {
        data[at : at + 4]: at
        for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)
    }
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    swapped = bytearray(data)
    swapped[red + 4 : red + 12], swapped[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(swapped)


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without littlecms")
def test_a_colour_profile_is_applied(tmp_path):
    save(tmp_path / "a.png", colour=RED, icc_profile=swapped_profile())
    assert near(colour(tmp_path / "a.png"), BLUE)


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without littlecms")
def test_a_colour_profile_is_applied_under_transparency(tmp_path):
    Image.new("RGBA", (8, 8), (*RED, 255)).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert near(colour(tmp_path / "a.png"), BLUE)


@pytest.mark.parametrize("profile", [b"nonsense", b""], ids=["broken", "empty"])
def test_a_broken_colour_profile_is_left_aside(tmp_path, profile):
    save(tmp_path / "a.png", colour=RED, icc_profile=profile)
    assert colour(tmp_path / "a.png") == RED


def test_a_colour_profile_of_another_colour_model_is_left_aside(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png", icc_profile=swapped_profile())
    assert colour(tmp_path / "a.png") == (77, 77, 77)


# --- files that are no whole images -------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize(
    "suffix", [".jpg", "progressive.jpg", ".png", ".webp", ".tif", ".gif", ".bmp"]
)
def test_a_truncated_file_is_said_to_be_cut_off(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    noise().save(path, **({"progressive": True} if "progressive" in suffix else {}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (read_image, examine):
        with pytest.raises(DatasetError, match=r"cut off|damaged"):
            read(path)


def test_a_truncated_jpeg_is_said_to_end_before_its_picture(tmp_path):
    noise().save(tmp_path / "a.jpg")
    path = tmp_path / "b.jpg"
    path.write_bytes((tmp_path / "a.jpg").read_bytes()[:-2000])
    with pytest.raises(DatasetError) as caught:
        examine(path)
    assert str(caught.value) == f"{path} is cut off: the file ends before the image does"
    assert str(caught.value.hint) == "Copy or download it again, or remove it."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\0" * 5000, "holds nothing but zeros"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            (
                "is cut off or damaged: its header cannot be read"
                if HEIC
                else "is an HEIC image, which cannot be read here"
            ),
        ),
        (b"\xff\x0a" + b"x" * 50, "is a JPEG XL image, which is not supported"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not an image"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer, not the image",
        ),
        (b"\xff\xd8\xff\xe0\0", "is cut off or damaged: its header cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "is cut off or damaged: its header cannot be read"),
        (b"my holiday images", "is not an image in a supported format"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path, content, sentence):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_image, examine, image_size):
        with pytest.raises(DatasetError) as caught:
            read(path)
        assert str(caught.value) == f"{path} {sentence}"
        assert str(caught.value.hint)


def black_png(path: Path, width: int, height: int) -> Path:
    """A PNG of a few kilobytes, however large it is when decoded."""
    packer, row = zlib.compressobj(9), bytes(1 + 4 * width)
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [11400, 60000])
def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch, side):
    path = tmp_path / "a.png"
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )
    for pillow_limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
        for read in (read_image, examine, image_size):
            with pytest.raises(
                DatasetError,
                match=(
                    f"a.png has {-(-side * side // 10**6)} million pixels, and no more than 128"
                    " million are read"
                ),
            ):
                read(path)


def test_a_variable_sets_the_limit_of_pixels(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", size=(1100, 1000))
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    with pytest.raises(DatasetError) as caught:
        examine(path)
    assert "set the environment variable LORA_TRAINER_MAX_MEGAPIXELS to 2 and start again" in str(
        caught.value.hint
    )
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    assert examine(path).width == 1100
    monkeypatch.setenv(LIMIT_VARIABLE, "many")
    assert max_megapixels() == 128


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
def test_a_large_picture_is_in_memory_once(tmp_path):
    """One of 25 million pixels with transparency takes 100 MB as it is; it took four times as much
    to convert it.
    """
    black_png(tmp_path / "a.png", 5000, 5000)
    program = (
        "import resource, sys; from pathlib import Path; from PIL import features; from"
        " lora_trainer.dataset.images import *\npeak = lambda:"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == 'darwin' else"
        " 0.0009765625) // 2**20\nbefore, path = peak(), Path(sys.argv[1])\nexamine(path); small ="
        " read_image(path, covering=(512, 512)); write_reduced(path, path.with_suffix('.webp'),"
        " 384)\nprint(small.size, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    size, _, peak = done.stdout.rpartition(" ")
    assert size == "(1667, 1667)" and float(peak) < 250


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "turned.jpg", "clear.png", "grey.png", "palette.png", "a.webp"]
)
def test_a_large_picture_reduced_is_what_the_whole_becomes(tmp_path, monkeypatch, name):
    """In strips and reduced, or whole and at once: the bucket shows the same."""
    image = Image.effect_noise((900, 600), 60).convert("RGB").filter(ImageFilter.GaussianBlur(4))
    image.paste(RED, (0, 0, 300, 200))
    image.paste(BLUE, (600, 400, 900, 600))
    options = {}
    if name == "turned.jpg":
        options["exif"] = exif(6)
    if name == "clear.png":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if name == "grey.png":
        image = image.convert("I").point(lambda value: value * 200).convert("I;16")
    if name == "palette.png":
        image = image.quantize(64)
    image.save(tmp_path / name, **({"quality": 95} if name.endswith(".jpg") else {}), **options)
    size = image_size(tmp_path / name)
    whole = fit(read_image(tmp_path / name), Bucket(64, 64))
    monkeypatch.setattr(images, "_LARGE", 10_000)
    monkeypatch.setattr(images, "_STRIP", 50_000)
    small = read_image(tmp_path / name, covering=(64, 64))
    assert 192 <= min(small.size) < min(size)
    reduced = fit(small, Bucket(64, 64), whole=size)
    assert (reduced.original_size, reduced.crop_top_left) == (
        whole.original_size,
        whole.crop_top_left,
    )
    assert reduced.image.size == whole.image.size
    difference = ImageChops.difference(reduced.image, whole.image)
    assert max(high for _, high in difference.getextrema()) <= (12 if name.endswith(".jpg") else 2)


def test_a_missing_file_gets_a_sentence(tmp_path):
    for read in (read_image, examine, image_size, digest):
        with pytest.raises(DatasetError, match="does not exist"):
            read(tmp_path / "a.png")


def test_a_folder_named_like_a_picture_gets_a_sentence(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DatasetError, match=r"a\.png cannot be read: "):
        read_image(tmp_path / "a.png")


# --- digest and fit -------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_content(tmp_path):
    one, same, other = (
        save(tmp_path / "a.png"),
        save(tmp_path / "b.png"),
        save(tmp_path / "c.png", colour=RED),
    )
    assert digest(one) == digest(same) == examine(one).digest != digest(other)
    (tmp_path / "d").write_bytes(b"abc")
    assert digest(tmp_path / "d") == "384264f676f39536840523f284921cdc68b6846b"  # b2sum -l 160


@pytest.mark.parametrize(
    ("size", "bucket", "crop"),
    [
        ((1000, 500), Bucket(512, 512), (0, 256)),  # resized to 1024 x 512
        ((500, 1000), Bucket(512, 512), (256, 0)),
        ((512, 512), Bucket(512, 512), (0, 0)),
        ((100, 100), Bucket(64, 128), (0, 32)),  # enlarged to 128 x 128
        ((333, 777), Bucket(384, 640), (128, 0)),  # resized to 384 x 896
    ],
)
def test_fit_covers_the_bucket_and_crops_the_middle(size, bucket, crop):
    fitted = fit(Image.new("RGB", size), bucket)
    assert fitted.image.size == (bucket.width, bucket.height)
    assert fitted.original_size == size
    assert fitted.crop_top_left == crop


def test_fit_keeps_the_middle_of_the_picture():
    image = Image.new("RGB", (300, 100), RED)
    image.paste(GREEN, (100, 0, 200, 100))
    fitted = fit(image, Bucket(64, 64)).image
    assert fitted.getpixel((32, 32)) == GREEN
    assert near(fitted.getpixel((3, 32)), GREEN) and near(fitted.getpixel((60, 32)), GREEN)


def test_fit_never_leaves_a_gap():
    for width in range(50, 500, 37):
        for height in range(50, 500, 41):
            assert fit(Image.new("L", (width, height), 255), Bucket(72, 56)).image.getextrema() == (
                255,
                255,
            )


# --- small copies, and what a file really is ------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_reduced_copy_is_upright_and_within_its_size(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    path = tmp_path / f"a{suffix}"
    corners((640, 320)).save(path, exif=exif)
    assert write_reduced(path, tmp_path / "small.webp", 100) == (320, 640)
    with Image.open(tmp_path / "small.webp") as small:
        assert (small.format, small.size) == ("WEBP", (50, 100))
        assert near(small.convert("RGB").getpixel((5, 5)), BLUE, 30) and near(
            small.convert("RGB").getpixel((45, 5)), RED, 30
        )


def test_a_small_picture_is_not_enlarged(tmp_path):
    write_reduced(save(tmp_path / "a.png", size=(30, 20)), tmp_path / "small.webp", 384)
    with Image.open(tmp_path / "small.webp") as small:
        assert small.size == (30, 20)


def test_a_picture_that_is_cut_off_has_no_reduced_copy(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="cut off|damaged"):
        write_reduced(path, tmp_path / "small.webp", 100)
    assert not (tmp_path / "small.webp").exists()


def test_the_size_of_a_png_is_upright_wherever_its_exif_lies(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    corners((32, 16)).save(path)
    content, chunk = path.read_bytes(), png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(content[:-12] + chunk + content[-12:])  # after the pixels
    assert image_size(path) == (16, 32)
    path.write_bytes(content[:33] + chunk + content[33:])  # before them
    assert image_size(path) == (16, 32)
    path.write_bytes(content)
    assert image_size(path) == (32, 16)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.png", ".png"),
        ("a.webp", ".webp"),
        ("a.jpeg", ".jpg"),
        ("a.tiff", ".tif"),
        ("a.bmp", ".bmp"),
    ],
)
def test_the_content_tells_the_suffix(tmp_path, name, suffix):
    assert suffix_of(save(tmp_path / name).rename(tmp_path / "IMG_0001.heic")) == suffix

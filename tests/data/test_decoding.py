"""The decoder of image files, through all its users: every mode, odd metadata, damaged files."""

import io
import logging
import pathlib
import re
import struct
import tempfile
import warnings
import zlib

import numpy as np
import pytest
from image_files import damaged, flat, gradient, save
from PIL import Image, ImageOps

from ddpm_jax.data import decoding, files, images, tfds


def read_folder(file, channels):
    return files.folder(file.parent, 8)[0]["image"]


def read_image(file, channels):
    return images.load(file, (8, 8, channels))


def read_record(file, channels):
    return tfds.TfdsRecords([{"image": file.read_bytes()}], None, channels, None)[0]["image"]


READERS = [read_folder, read_image, read_record]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "image, expected",
    [
        (flat(1, "1"), [255]),
        (flat(77, "L"), [77]),
        (flat((40, 255), "LA"), [40]),
        (flat((40, 0), "LA"), [255]),
        (flat((0, 102), "LA"), [153]),  # 40 % black on white
        (Image.fromarray(np.full((8, 8), 0x8080, np.uint16)), [128]),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), [255]),
        (Image.fromarray(np.full((8, 8), 257, np.uint16)), [1]),
        (flat((10, 20, 30), "RGB"), [10, 20, 30]),
        (flat((10, 20, 30, 255), "RGBA"), [10, 20, 30]),
        (flat((10, 20, 30, 0), "RGBA"), [255, 255, 255]),
        (flat((0, 255, 0, 51), "RGBA"), [204, 255, 204]),  # 20 % green on white
        (flat((10, 20, 30), "RGB").quantize(4), [10, 20, 30]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_of_png_becomes_opaque_and_8_bit(tmp_path, image, expected, read):
    pixels = read(save(tmp_path / "image.png", image), len(expected))
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, len(expected))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.array(expected), pixels.shape))


def test_mode_i_is_scaled_by_16_bits(tmp_path):
    # Older versions of Pillow open a 16-bit PNG in this mode; newer ones do so for a TIFF, whatever its suffix.
    save(tmp_path / "image.png", Image.fromarray(np.full((8, 8), 257 * 100, np.int32)), format="TIFF")
    assert files.folder(tmp_path, 8)[0]["image"].ravel().tolist() == [100] * 64


@pytest.mark.parametrize("transparent, expected", [(0, [255, 255, 255]), (1, [10, 20, 30])])
def test_a_transparent_palette_colour_becomes_white(tmp_path, transparent, expected):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 0, 0])
    save(tmp_path / "image.png", image, transparency=transparent)
    assert files.folder(tmp_path, 8)[0]["image"][3, 3].tolist() == expected


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    save(tmp_path / "image.jpg", flat((0, 255, 255, 0), "CMYK"), quality=100)
    pixels = files.folder(tmp_path, 8)[0]["image"].astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() < 4


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_orientation_is_read_from_every_format(tmp_path, ending):
    image = np.zeros((16, 16), np.uint8)
    image[:8, :8] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by 90 degrees: top right
    save(tmp_path / f"image.{ending}", image, exif=exif)
    pixels = files.folder(tmp_path, 16)[0]["image"][..., 0]
    corners = [pixels[2, 2], pixels[2, -3], pixels[-3, 2], pixels[-3, -3]]
    assert [bool(level > 128) for level in corners] == [False, True, False, False]


@pytest.mark.parametrize("height, width", [(12, 12), (12, 31), (24, 13)])
def test_the_central_square_is_cropped(tmp_path, height, width):
    image = gradient(height, width)
    save(tmp_path / "image.png", image)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    np.testing.assert_array_equal(files.folder(tmp_path, side)[0]["image"], image[top : top + side, left : left + side])


def test_resizing_does_not_alias(tmp_path):
    stripes = np.zeros((90, 90), np.uint8)
    stripes[:, ::2] = 255  # the finest possible: uniform gray, except to a filter that skips pixels
    save(tmp_path / "image.png", stripes)
    inside = files.folder(tmp_path, 20)[0]["image"][:, 2:-2].astype(int)
    assert np.abs(inside - 127.5).max() < 8


def test_small_images_are_enlarged(tmp_path):
    save(tmp_path / "image.png", flat(9, size=(3, 5)))
    assert files.folder(tmp_path, 16)[0]["image"].tolist() == [[[9]] * 16] * 16


@pytest.mark.parametrize("read", READERS)
def test_a_transparent_level_of_16_bits_becomes_white(tmp_path, read):
    image = np.full((8, 8), 257 * 10, np.uint16)
    image[4:] = 257 * 20
    save(tmp_path / "image.png", Image.fromarray(image), transparency=257 * 20)
    np.testing.assert_array_equal(read(tmp_path / "image.png", 1)[:, 0, 0], [10] * 4 + [255] * 4)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_by_pillow(tmp_path, orientation, read):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "image.png", gradient(8, 8), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "image.png")))
    np.testing.assert_array_equal(read(tmp_path / "image.png", 3), expected)
    assert np.array_equal(expected, gradient(8, 8)) == (orientation == 1)


def test_orientation_comes_before_the_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "image.png", gradient(6, 8), exif=exif)
    np.testing.assert_array_equal(images.load(tmp_path / "image.png", (8, 6, 3)), np.rot90(gradient(6, 8), -1))
    with pytest.raises(ValueError, match=r"8 wide and 6 high, as the model generates, received 6 x 8 in .*image\.png"):
        images.load(tmp_path / "image.png", (6, 8, 3))
    with pytest.raises(ValueError, match="1 or 3 channels, received 4"):
        images.load(tmp_path / "image.png", (8, 6, 4))


def exif_with(*tags):
    """EXIF data of raw tags: (number, type, count, 4 bytes)."""
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


ROTATED = (0x112, 3, 1, struct.pack("<I", 6))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    "exif, is_rotated",
    [
        (exif_with(ROTATED, (0x11A, 2, 4, b"72\0\0")), True),  # a resolution as text
        (exif_with(ROTATED, (0x11A, 7, 4, b"\1\2\3\4")), True),  # as bytes
        (exif_with(ROTATED, (0x11A, 11, 1, struct.pack("<f", float("nan")))), True),
        (exif_with(ROTATED, (0x128, 4, 1, struct.pack("<I", 2**31))), True),  # a unit above 65,535
        (exif_with(ROTATED, (0x128, 9, 1, struct.pack("<i", -3))), True),
        (exif_with(ROTATED, (0x8769, 4, 1, struct.pack("<I", 2**31))), True),  # a block beyond the end
        (exif_with((0x112, 3, 1, struct.pack("<I", 9))), False),  # no such orientation
        (exif_with((0x112, 2, 4, b"6\0\0\0")), False),
        (exif_with((0x112, 11, 1, struct.pack("<f", float("nan")))), False),
        (exif_with((0x112, 5, 1, struct.pack("<I", 0))), False),  # a fraction whose place is the header
        (exif_with(ROTATED)[:12], False),
        (b"Exif\0\0II*\0" + b"\xff" * 40, False),
        (b"Exif\0\0", False),
        (b"Exif\0\0nonsense", False),
    ],
)
def test_an_image_is_read_in_spite_of_odd_metadata(tmp_path, exif, is_rotated, ending, caplog):
    image = np.zeros((8, 8), np.uint8)
    image[:4, :4] = 255
    save(tmp_path / f"a.{ending}", image, exif=exif, quality=100)
    save(tmp_path / "b.png", flat(0))
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, of corrupt EXIF data
        pixels = files.folder(tmp_path, 8)[0]["image"]
    np.testing.assert_allclose(pixels[..., 0], np.rot90(image, -1) if is_rotated else image, atol=12)
    assert not caplog.messages


@pytest.mark.parametrize("error", [SyntaxError, struct.error, IndexError, KeyError, TypeError, AssertionError, MemoryError])
@pytest.mark.parametrize("read", READERS)
def test_any_exception_of_a_decoder_becomes_one_that_names_the_image(tmp_path, monkeypatch, caplog, error, read):
    def load(self):
        raise error("broken")

    file = save(tmp_path / "image.png", flat(0))
    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    name = "tfds: record 0" if read is read_record else str(file)
    with pytest.raises(OSError, match=re.escape(name)) as raised:
        read(file, 1)
    said = caplog.messages[0] if read is read_folder else str(raised.value)
    assert re.search(rf"{re.escape(name)}: '?broken'?$", said)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_named(tmp_path, content):
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(OSError, match=r"page\.png: expected an image, received") as raised:
        images.load(tmp_path / "page.png", (8, 8, 1))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        images.load(tmp_path / "missing.png", (8, 8, 1))


def test_size_and_channels_are_known_from_the_header():
    for image, expected in ((flat(1, "1"), 1), (flat((1, 2), "LA"), 1), (flat((1, 2, 3), "RGB"), 3), (flat(0, "P"), 3)):
        assert decoding.header(io.BytesIO(encoded(image.resize((8, 6)), "PNG")), "a") == ((8, 6), expected)


def test_every_level_of_16_bits_is_rounded_to_8():
    level = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decoding.decode(io.BytesIO(encoded(Image.fromarray(level), "PNG")), "a", 1)
    np.testing.assert_array_equal(pixels[..., 0], np.round(level / 257))


def encoded(image, ending, **options):
    file = io.BytesIO()
    image.save(file, ending, **options)
    return file.getvalue()


def with_header(png, rng):
    """A copy of a PNG whose header claims another size, depth or colour type, with a correct checksum."""
    sizes = [int(rng.choice([0, 1, 7, 8, 9, 300, 2**16, 2**31 - 1, 2**32 - 1])) for _ in range(2)]
    other = struct.pack(">II", *sizes) + rng.integers(0, [17, 8, 2, 2, 3], dtype=np.uint8).tobytes()
    header = b"".join(bytes([part]) for part in (other if rng.random() < 0.5 else png[16:24] + other[8:]))
    return png[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + png[33:]


def read_damaged(num, seed):
    """Reads `num` damaged images by all readers; returns how many could be decoded.

    Raises for any outcome but an array, an error that names the image, or its absence, with a warning that names it.
    """
    rng = np.random.default_rng(seed)
    exif = exif_with(ROTATED, (0x11A, 5, 1, struct.pack("<I", 8)), (0x128, 3, 1, struct.pack("<I", 2)))
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    wholes = [
        encoded(noise, "PNG", exif=exif), encoded(noise.quantize(8), "PNG", transparency=1),
        encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"), encoded(noise, "JPEG", exif=exif),
        encoded(noise, "JPEG", progressive=True), encoded(noise.convert("CMYK"), "JPEG"), encoded(noise, "WEBP", exif=exif),
        encoded(noise.convert("RGBA"), "WEBP", lossless=True),
    ]  # fmt: skip
    num_decoded, said = 0, Lines()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files.logger.addHandler(said)
        file, good = pathlib.Path(folder) / "a.png", pathlib.Path(folder) / "b.png"
        save(good, flat(77))
        for number in range(num):
            whole = wholes[number % len(wholes)]
            whole = with_header(whole, rng) if whole[1:4] == b"PNG" and rng.random() < 0.3 else damaged(whole, rng)
            file.write_bytes(whole)
            num_decoded += check_outcomes(file, 1 + 2 * (number % 2), said)
        files.logger.removeHandler(said)
    return num_decoded


class Lines(logging.Handler):
    """Keeps the warnings of a logger as lines."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_outcomes(file, channels, said):
    """Reads a damaged image, which lies beside a good one, by all readers; returns whether it could be decoded."""
    outcomes = []
    for name, read in {
        str(file): lambda: images.load(file, (8, 8, channels)),
        "tfds: record 0": lambda: tfds.TfdsRecords([{"image": file.read_bytes()}], 8, channels, None)[0]["image"],
    }.items():
        try:
            pixels = read()
            assert pixels.shape == (8, 8, channels) and pixels.dtype == np.uint8
            outcomes.append(True)
        except (OSError, ValueError) as error:
            is_size = type(error) is ValueError and "as the model generates" in str(error) and str(file) in str(error)
            if "\n" in str(error) or not (str(error).startswith(f"{name}: ") or is_size):
                raise
            outcomes.append(is_size)
    said.lines.clear()
    source = files.folder(file.parent, 8)
    pixels = source[0]["image"]
    assert pixels.shape in ((8, 8, 1), (8, 8, 3)) and pixels.dtype == np.uint8
    assert [line for line in said.lines if "\n" in line or str(file) not in line] == []
    outcomes.append(not said.lines)
    assert len(said.lines) <= 1 and (said.lines or len(source) == 2)
    assert len(set(outcomes)) == 1, (outcomes, said.lines)
    return outcomes[0]


def test_damaged_files_become_arrays_or_errors_that_name_them():
    assert 20 < read_damaged(200, seed=0) < 180

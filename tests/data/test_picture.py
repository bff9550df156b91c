"""Images as a person sees them, against arrays and closed forms; on the board the same pixels."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data import picture
from pipeline.data.picture import Unreadable, middle, opened
from pipeline.deploy import bundle

DRAWS = np.random.default_rng(0)
COLOURS = DRAWS.integers(0, 256, (8, 12, 3), dtype=np.uint8)
GREY = DRAWS.integers(0, 256, (8, 12), dtype=np.uint8)
HALF = np.arange(96).reshape(8, 12) % 2 == 0
"""Where the transparent images below are seen."""
WHITE = (255, 255, 255)


def stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shown(content, mode="RGB"):
    return np.asarray(opened(content, mode)[0])


TURNS = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: np.swapaxes(upright, 0, 1),
    6: np.rot90,
    7: lambda upright: np.swapaxes(np.rot90(upright, 2), 0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""What a camera stores of an upright scene, by its EXIF orientation (EXIF 2.3, section 4.6.4)."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_photograph_stands_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    camera = Image.fromarray(np.ascontiguousarray(TURNS[orientation](COLOURS)))
    content = stored(camera, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(shown(content), COLOURS)


def test_a_broken_exif_leaves_an_image_as_it_is():
    content = stored(Image.fromarray(COLOURS), "PNG", exif=b"Exif\x00\x00MM\x00*broken")
    assert np.array_equal(shown(content), COLOURS)


def _rgba():
    return Image.fromarray(np.dstack([COLOURS, np.where(HALF, 255, 0).astype(np.uint8)]))


def _grey_with_alpha():
    return Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(np.where(HALF, 255, 0).astype(np.uint8))))


def _palette(**transparency):
    image = Image.fromarray(np.where(HALF, 3, 7).astype(np.uint8), "P")
    image.putpalette([value for entry in range(256) for value in (entry * 10 % 256, 255 - entry, 50)])
    return stored(image, "PNG", **transparency)


def _on_white(seen):
    return np.where(HALF[..., None], seen, 255)


THREE_GREYS = np.repeat(GREY[..., None], 3, axis=2)
BLACK_ELSEWHERE = np.where(HALF, np.maximum(GREY, 1), 0).astype(np.uint8)
TRANSPARENT = {
    "RGBA in PNG": (lambda: stored(_rgba(), "PNG"), _on_white(COLOURS)),
    "RGBA in TIFF": (lambda: stored(_rgba(), "TIFF"), _on_white(COLOURS)),
    "RGBA in WebP": (lambda: stored(_rgba(), "WEBP", lossless=True), _on_white(COLOURS)),
    "grey with alpha": (lambda: stored(_grey_with_alpha(), "PNG"), _on_white(THREE_GREYS)),
    "one entry of a palette": (lambda: _palette(transparency=7), _on_white(np.array([30, 252, 50]))),
    "alpha of a palette": (lambda: _palette(transparency=bytes([255] * 7 + [0])), _on_white(np.array([30, 252, 50]))),
    "one grey": (
        lambda: stored(Image.fromarray(BLACK_ELSEWHERE), "PNG", transparency=0),
        _on_white(np.maximum(THREE_GREYS, 1)),
    ),
    "one colour": (
        lambda: stored(Image.fromarray(np.where(HALF[..., None], [200] * 3, 9).astype(np.uint8)), "PNG", transparency=(9,) * 3),
        _on_white(np.array([200, 200, 200])),
    ),
    "one grey of 16 bits": (
        lambda: stored(Image.fromarray(np.where(HALF, 257 * 80, 300).astype(np.uint16)), "PNG", transparency=300),
        _on_white(np.array([80, 80, 80])),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name):
    make, expected = TRANSPARENT[name]
    assert np.array_equal(shown(make()), expected)
    assert np.array_equal(shown(make(), "L"), np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L")))


def test_half_of_transparent_is_half_of_white():
    content = stored(Image.new("RGBA", (2, 2), (100, 0, 200, 128)), "PNG")
    expected = [255 + (value - 255) * 128 / 255 for value in (100, 0, 200)]
    assert shown(content)[0, 0] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (np.array([[0, 128, 40_000, 65_535]], dtype=np.uint16), "PNG", [0, 0, 156, 255]),
        (np.array([[0, 128, 40_000, 65_535]], dtype=np.uint16), "TIFF", [0, 0, 156, 255]),
        (np.array([[0, 257, 40_000, 65_535]], dtype=np.int32), "TIFF", [0, 1, 156, 255]),
        (np.array([[0, 0.1, 0.5, 1]], dtype=np.float32), "TIFF", [0, 26, 128, 255]),
    ],
)
def test_more_than_8_bits_are_scaled(values, kind, expected):
    content = stored(Image.fromarray(values), kind)
    assert shown(content)[0].tolist() == [[value] * 3 for value in expected]
    assert shown(content, "L")[0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.array([[-1, 5]], dtype=np.int32), r"its values go from -1 to 5, takes 0 to 65535: convert it"),
        (np.array([[0, 70_000]], dtype=np.int32), r"its values go from 0 to 70000, takes 0 to 65535"),
        (np.array([[0, 9]], dtype=np.float32), r"its floats go from 0 to 9, takes 0 .black. to 1 .white.: convert it"),
        (np.array([[0, np.nan]], dtype=np.float32), r"its floats go from nan to nan"),
    ],
)
def test_values_of_no_known_scale_are_not_guessed(values, sentence):
    with pytest.raises(Unreadable, match=sentence):
        opened(stored(Image.fromarray(values), "TIFF"), "RGB")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_ink_becomes_light(kind):
    """CMYK is light held back twice: (1 - colour) (1 - black). JPEG has it inverted, as Adobe writes it."""
    cmyk = Image.new("CMYK", (16, 16), (255, 51, 0, 102))
    expected = [(255 - ink) * (255 - 102) / 255 for ink in (255, 51, 0)]
    assert shown(stored(cmyk, kind, **({"quality": 100} if kind == "JPEG" else {})))[5, 5] == pytest.approx(
        expected, abs=3
    )


def _profile(primaries, exponent, space=b"RGB "):
    """An ICC profile (version 2) of three primaries in XYZ under D50, and one exponent for all."""

    def fixed(value):
        return struct.pack(">i", round(value * 65_536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(fixed(value) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256)) + b"\0\0"
    text = b"A wide one\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"RGB ":
        tags |= {name + b"XYZ": xyz(each) for name, each in zip((b"r", b"g", b"b"), primaries, strict=True)}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        padded = content + b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += padded
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + b"\0" * 12 + b"acsp"
    head += b"\0" * 24 + struct.pack(">I", 0) + b"".join(fixed(value) for value in (0.9642, 1.0, 0.8249)) + b"\0" * 48
    whole = head + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]])
"""From linear sRGB to XYZ under D50 (IEC 61966-2-1, adapted by Bradford)."""
WIDE = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
"""The same of Adobe RGB (1998)."""


def _as_srgb(linear):
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_colours_are_those_of_the_profile():
    soft = (64 + COLOURS // 2).astype(np.uint8)  # colours that sRGB has too
    content = stored(Image.fromarray(soft), "PNG", icc_profile=_profile(WIDE.T, 2.2))
    expected = _as_srgb((soft / 255) ** 2.19921875 @ (np.linalg.inv(SRGB) @ WIDE).T)
    assert abs(expected - soft).max() > 15
    assert shown(content) == pytest.approx(expected, abs=2)


def test_greys_are_those_of_the_profile():
    content = stored(Image.fromarray(GREY), "PNG", icc_profile=_profile((), 1.8, b"GRAY"))
    assert shown(content)[..., 1] == pytest.approx(_as_srgb((GREY / 255) ** 1.8), abs=2)


@pytest.mark.parametrize("profile", [b"no profile", _profile((), 1.0, b"GRAY")], ids=["broken", "of another mode"])
def test_a_profile_that_is_none_leaves_the_colours(profile):
    assert np.array_equal(shown(stored(Image.fromarray(COLOURS), "PNG", icc_profile=profile)), COLOURS)


def test_a_profile_and_transparency_and_a_turn_together():
    exif = Image.Exif()
    exif[0x0112] = 6
    soft = (64 + COLOURS // 2).astype(np.uint8)
    alpha = np.where(HALF, 255, 0).astype(np.uint8)
    camera = Image.fromarray(np.ascontiguousarray(np.rot90(np.dstack([soft, alpha]))))
    content = stored(camera, "PNG", icc_profile=_profile(WIDE.T, 2.2), exif=exif)
    alone = shown(stored(Image.fromarray(soft), "PNG", icc_profile=_profile(WIDE.T, 2.2)))
    assert np.array_equal(shown(content), _on_white(alone))


def _frames(kind, **options):
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    return stored(first, kind, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_told(kind):
    image, several = opened(_frames(kind, **({"lossless": True} if kind == "WEBP" else {})), "RGB")
    assert several
    assert image.getpixel((4, 4)) == (250, 0, 0)
    assert not opened(stored(image, kind), "RGB")[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "^an empty file$"),
        (b"words", "^in no format of images that Pillow knows$"),
        (stored(Image.fromarray(COLOURS), "PNG")[:90], None),
        (stored(Image.fromarray(COLOURS), "TIFF")[:60], None),
    ],
    ids=["empty", "words", "half a PNG", "half a TIFF"],
)
def test_what_is_no_image_is_told(content, said, tmp_path):
    (tmp_path / "image").write_bytes(content)
    for source in (content, tmp_path / "image"):
        with pytest.raises(Unreadable, match=said):
            opened(source, "RGB")


def test_a_bomb_is_refused_before_it_is_decoded():
    huge = bytearray(stored(Image.new("L", (1, 1)), "PNG"))
    huge[16:24] = struct.pack(">II", 60_000, 60_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    with pytest.raises(Unreadable, match="exceeds limit of 178956970 pixels"):
        opened(bytes(huge), "RGB")


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (3, 20_000)])
def test_a_thin_image_costs_no_more_than_it_shows(size):
    image = middle(Image.new("RGB", size, "red"), 256, (224, 224))
    assert image.size == (224, 224)
    assert image.getpixel((100, 100)) == (255, 0, 0)


BOARD = """
import sys
sys.path.insert(0, sys.argv[1])
import json
import pathlib, numpy, run
told = {"kind": "image", "type": "uint8", "shape": [None, 3, 32, 32], "mode": "RGB", "shorter_side": 36}
print(json.dumps([run.image_in(told, pathlib.Path(file))[0].tolist() for file in sys.argv[2:]]))
"""


def test_the_board_sees_the_same_pixels(tmp_path):
    """Without the package: the program's files alone."""
    for file in bundle.PROGRAM:
        shutil.copy(file, tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "upright.jpg": stored(Image.fromarray(np.tile(COLOURS, (6, 6, 1))), "JPEG", exif=exif),
        "clear.png": TRANSPARENT["RGBA in PNG"][0](),
        "deep.png": TRANSPARENT["one grey of 16 bits"][0](),
        "wide.png": stored(Image.fromarray(COLOURS), "PNG", icc_profile=_profile(WIDE.T, 2.2)),
        "moving.gif": _frames("GIF"),
        "thin.png": stored(Image.new("RGB", (1, 3000), (1, 2, 3)), "PNG"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-I", "-c", BOARD, str(tmp_path), *(str(tmp_path / name) for name in contents)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "moving.gif has several frames: the first is used" in said.stderr
    for name, got in zip(contents, json.loads(said.stdout), strict=True):
        trained = middle(opened(tmp_path / name, "RGB")[0], 36, (32, 32))
        assert np.array_equal(np.array(got), np.asarray(trained).transpose(2, 0, 1)), name
    assert picture.__file__ in map(str, bundle.PROGRAM)

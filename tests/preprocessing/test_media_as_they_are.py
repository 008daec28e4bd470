"""Files as people have them: each is read exactly, flagged, or refused by name, by preprocess and predict."""

from __future__ import annotations

import codecs
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from preprocessing.datasets.video_folder import read_video_folder
from preprocessing.frames import VideoReader, read_last_frames
from preprocessing.unreadable import Unreadable
from services.errors import FoldwiseError
from tests.preprocessing.media_files import (
    COUNT,
    HEIGHT,
    WIDTH,
    Build,
    animation,
    changed,
    corner,
    cut,
    file,
    flips_in_packet,
    gray,
    in_packet,
    level,
    listed,
    pgm,
    picture,
    png_chunk,
    remuxed,
    saved,
    several,
    sound,
    stills,
    tiff,
    values,
    video,
    with_chunk,
    zeros_in_packet,
)

LAST = tuple(range(COUNT - 10, COUNT))
"""Numbers of the last ten frames."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder of videos, and what becomes of the one clip in it."""

    build: Build
    frames: tuple[int | None, ...] = ()
    """Which picture each frame shows; None for a damaged one."""
    flags: tuple[str, ...] = ()
    """How its flags read, each without the name of the file in front."""
    refused: str = ""
    """Part of the reason if there is no clip."""
    list: str = ""
    size: tuple[int, int] = (WIDTH, HEIGHT)


def whole(build: Build, frames: tuple[int | None, ...] = LAST, **options: object) -> Case:
    return Case(build=build, frames=frames, **options)  # type: ignore[arg-type]


def one(name: str, content: bytes, *flags: str) -> Case:
    return Case(build=file(name, lambda: content), frames=(4,), flags=flags)


def refused(name: str, content: bytes, reason: str) -> Case:
    return Case(build=file(name, lambda: content), refused=reason)


def in_list(text: str | bytes, name: str = "v/a.avi", *, frames: tuple[int, ...] = (2, 3, 4)) -> Case:
    content = text if isinstance(text, bytes) else text.encode()
    return Case(build=listed(content, name), list="clips.csv", frames=frames)


def refused_list(text: str | bytes, reason: str, name: str = "v/a.avi") -> Case:
    content = text if isinstance(text, bytes) else text.encode()
    return Case(build=listed(content, name), list="clips.csv", refused=reason)


def jpeg(quality: int = 95) -> bytes:
    return saved(Image.fromarray(picture(4)), "JPEG", quality=quality)


def turned(kind: str, orientation: int) -> bytes:
    """An image that is upright only with the orientation in its metadata."""
    exif = Image.Exif()
    exif[274] = orientation
    angle = {3: 180, 6: 90, 8: 270}[orientation]
    return saved(gray().rotate(angle, expand=True), kind, exif=exif)


def deep(bits: int) -> npt.NDArray[np.uint16]:
    return np.asarray(np.rint(values() / 255 * (2**bits - 1)), np.uint16)


def png16(samples: npt.NDArray[np.uint16]) -> bytes:
    return bytes(cv2.imencode(".png", samples)[1].tobytes())


def float_tiff(scale: float) -> bytes:
    return bytes(cv2.imencode(".tif", (values() / np.float32(255) * scale).astype(np.float32))[1].tobytes())


def compressed_tiff() -> bytes:
    noise = np.random.default_rng(0).integers(0, 65535, (HEIGHT, WIDTH)).astype(np.uint16)
    return bytes(cv2.imencode(".tif", noise)[1].tobytes())


def hole(content: bytes) -> bytes:
    return content[:200] + bytes(200) + content[400:]


H264, MPEG4, MJPEG = video("a.mp4"), video("a.avi", "mpeg4"), video("a.avi", "mjpeg", pixels="yuvj420p")
HEVC = {"x265-params": "log-level=none"}
FAST = {"movflags": "faststart"}
PNG, ROW = saved(gray(), "PNG"), "path,subject,label,start,end\nv/a.avi,anna,happy,2,4\n"
SECONDS = ROW.replace("2,4", "0.2s,0.4s")
NFC = unicodedata.normalize("NFC", "müller.avi")
NFD = unicodedata.normalize("NFD", NFC)
NO_B_FRAMES = {"bf": "0", "sc_threshold": "0"}
B_FRAMES = {"bf": "2", "b_strategy": "0", "sc_threshold": "0"}

CASES: dict[str, Case] = {
    # every container and codec
    "h264.mp4": whole(H264),
    "h264.m4v": whole(video("a.m4v", container="mp4")),
    "h264.mov": whole(video("a.mov")),
    "h264.mkv": whole(video("a.mkv")),
    "h264.flv": whole(video("a.flv")),
    "h264.mts": whole(video("a.mts", container="mpegts")),
    "h264.avi": whole(video("a.avi")),
    "hevc.mp4": whole(video("a.mp4", "libx265", options=HEVC)),
    "mpeg4.avi": whole(MPEG4),
    "mpeg4.3gp": whole(video("a.3gp", "mpeg4")),
    "mpeg2.mpg": whole(video("a.mpg", "mpeg2video", container="mpeg")),
    "mpeg2.ts": whole(video("a.ts", "mpeg2video", container="mpegts")),
    "vp8.webm": whole(video("a.webm", "libvpx")),
    "vp9.webm": whole(video("a.webm", "libvpx-vp9")),
    "wmv": whole(video("a.wmv", "wmv2", container="asf")),
    "mjpeg.avi": whole(MJPEG),
    "ffv1.mkv": whole(video("a.mkv", "ffv1")),
    "10 bits": whole(video("a.mp4", pixels="yuv420p10le")),
    "full range": whole(video("a.mp4", full_range=True)),
    "limited range": whole(video("a.mp4", "mpeg4")),
    "no suffix": whole(video("a", container="mp4")),
    "unknown suffix": whole(video("a.recording", container="matroska")),
    "wrong suffix": whole(video("a.png", container="mp4")),
    "pixels that are wide": whole(video("a.mp4", ratio=Fraction(16, 11)), size=(93, HEIGHT)),
    "pixels that are tall": whole(video("a.mkv", ratio=Fraction(8, 9)), size=(WIDTH, 54)),
    **{f"turned by {angle} degrees": whole(video("a.mp4", rotation=angle)) for angle in (90, 180, 270)},
    # what containers promise, and damage
    "edit list": whole(
        remuxed(video("b.mp4", options=B_FRAMES), "b.mp4", "a.mp4", shift=3), tuple(range(3, COUNT))
    ),
    "faststart cut at 97 %": Case(
        build=changed(video("a.mp4", muxer=FAST, gop=1), "a.mp4", cut(0.97)),
        frames=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        flags=("cannot be decoded at frame 11", "breaks off after 11 of 12 frames"),
    ),
    "mp4 without its end": Case(build=changed(H264, "a.mp4", cut(0.9)), refused="without its index"),
    "mkv cut": Case(
        build=changed(video("a.mkv", gop=1), "a.mkv", cut(0.88)),
        frames=tuple(range(10)),
        flags=("breaks off after 10 frames",),
    ),
    "avi cut": Case(
        build=changed(MJPEG, "a.avi", cut(0.9)),
        frames=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        flags=("cannot be decoded at frame 10", "breaks off after 10 of 12 frames"),
    ),
    "zeros in h264": Case(
        build=changed(H264, "a.mp4", zeros_in_packet(0)),
        frames=(None,) * 10,
        flags=("is damaged at frames 2 to 11, or these follow a damaged frame",),
    ),
    "zeros in mpeg4": Case(
        build=changed(MPEG4, "a.avi", zeros_in_packet(6)),
        frames=(2, 3, 4, 5, *(None,) * 6),
        flags=("is damaged at frames 6 to 11, or these follow a damaged frame",),
    ),
    "zeros in hevc": Case(
        build=changed(video("a.mp4", "libx265", options=HEVC), "a.mp4", zeros_in_packet(2)),
        frames=(None,) * 10,
        flags=("is damaged at frames 2 to 11, or these follow a damaged frame",),
    ),
    "zeros in vp9": Case(
        build=changed(video("a.webm", "libvpx-vp9"), "a.webm", zeros_in_packet(0)),
        frames=(None,) * 10,
        flags=("is damaged at frames 2 to 11, or these follow a damaged frame",),
    ),
    "flips in mpeg4": Case(
        build=changed(MPEG4, "a.avi", flips_in_packet(6)),
        frames=(2, 3, 4, 5, *(None,) * 6),
        flags=("is damaged at frames 6 to 11, or these follow a damaged frame",),
    ),
    "flips in h264": Case(
        build=changed(video("a.mp4", gop=1), "a.mp4", flips_in_packet(6)),
        frames=(2, 3, 4, 5, None, 7, 8, 9, 10, 11),
        flags=("is damaged at frame 6, or these follow a damaged frame",),
    ),
    "flips in mjpeg": Case(
        build=changed(MJPEG, "a.avi", flips_in_packet(6, 100)),
        frames=(2, 3, 4, 5, None, 7, 8, 9, 10, 11),
        flags=("is damaged at frame 6, or these follow a damaged frame",),
    ),
    "end marker in mjpeg": Case(
        build=changed(MJPEG, "a.avi", in_packet(6, b"\xff\xd9")),
        frames=(1, 2, 3, 4, 5, 7, 8, 9, 10, 11),
        flags=("cannot be decoded at frame 6",),
    ),
    "a flip in hevc with checksums": Case(
        build=changed(
            video("a.mp4", "libx265", options={"x265-params": "log-level=none:hash=1:keyint=1"}),
            "a.mp4",
            flips_in_packet(6, 1),
        ),
        frames=(2, 3, 4, 5, None, 7, 8, 9, 10, 11),
        flags=("is damaged at frame 6, or these follow a damaged frame",),
    ),
    "flips in ffv1 with checksums": Case(
        build=changed(
            video("a.mkv", "ffv1", options={"level": "3", "slicecrc": "1"}, gop=1), "a.mkv", flips_in_packet(6)
        ),
        frames=(2, 3, 4, 5, None, 7, 8, 9, 10, 11),
        flags=("is damaged at frame 6, or these follow a damaged frame",),
    ),
    "no key frame at the start": Case(
        build=remuxed(video("b.mkv", "mpeg4", gop=6), "b.mkv", "a.mkv", drop=(0,)),
        frames=(*(None,) * 4, 6, 7, 8, 9, 10, 11),
        flags=("is damaged at frames 1 to 4, or these follow a damaged frame",),
    ),
    "no key frame at the start of h264": Case(
        build=remuxed(video("b.mkv", gop=6, options=NO_B_FRAMES), "b.mkv", "a.mkv", drop=(0,)),
        frames=(6, 7, 8, 9, 10, 11),
        flags=("cannot be decoded at frames 0 to 4",),
    ),
    "interlaced": Case(
        build=video("a.mpg", "mpeg2video", container="mpeg", options={"flags": "+ildct+ilme"}),
        frames=LAST,
        flags=("is stored as interlaced; if moving edges look like combs, deinterlace it",),
    ),
    "ts cut": Case(
        build=changed(video("a.ts", "mpeg2video", container="mpegts", gop=1), "a.ts", cut(0.9)),
        frames=tuple(range(10)),
        flags=("breaks off after 10 frames",),
    ),
    "flv cut": Case(
        build=changed(video("a.flv", "flv", gop=1), "a.flv", cut(0.9)),
        frames=(*range(9), None),
        flags=("is damaged at frame 9, or these follow a damaged frame", "breaks off after 10 frames"),
    ),
    "zeros in wmv": Case(
        build=changed(video("a.wmv", "wmv2", container="asf"), "a.wmv", zeros_in_packet(0)),
        frames=(None,) * 10,
        flags=("is damaged at frames 2 to 11, or these follow a damaged frame",),
    ),
    "webm that lacks packets": Case(
        build=remuxed(video("b.webm", "libvpx"), "b.webm", "a.webm", drop=(4, 5)),
        frames=(0, 1, 2, 3, *(None,) * 6),
        flags=(
            "is damaged at frames 4 to 9, or these follow a damaged frame",
            "has a gap in its times before frame 4, where 2 frames may be missing",
        ),
    ),
    "mkv cut in its header": Case(
        build=changed(video("a.mkv"), "a.mkv", cut(0.04)),
        refused="it is no video or image that foldwise can read",
    ),
    "mp4 whose metadata are no text": whole(
        changed(video("a.mp4"), "a.mp4", lambda _, content: content.replace(b"VideoHandler", b"\xff" * 12))
    ),
    "sound only": Case(build=sound("a.mp4"), refused="it holds only sound"),
    "a kind that is not on the list": refused("a.mp4", saved(gray(), "PCX"), "it is no video or image"),
    "heic": refused("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC picture"),
    "heic named .mp4": refused("a.mp4", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is a HEIC picture"),
    "text named .mp4": refused("a.mp4", b"no video at all", "it is no video or image that foldwise can read"),
    "a pointer of Git LFS": refused("a.mp4", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "empty": refused("a.mp4", b"", "an empty file"),
    # several pages
    "gif": whole(file("a.gif", lambda: animation("GIF", duration=100))),
    "animated webp": whole(file("a.webp", lambda: animation("WEBP", duration=100, lossless=True))),
    "apng": whole(file("a.png", lambda: animation("PNG", duration=100))),
    "apng with another first picture": whole(
        file("a.png", lambda: animation("PNG", count=6, default_image=True)), tuple(range(1, 6))
    ),
    "animated webp cut": refused(
        "a.webp", animation("WEBP", lossless=True)[:-8], "a.webp: could not create decoder"
    ),
    "tiff of pages": whole(file("a.tif", lambda: animation("TIFF"))),
    "tiff of pages with lzw": whole(file("a.tiff", lambda: animation("TIFF", compression="tiff_lzw"))),
    "gif cut": Case(
        build=file("a.gif", lambda: animation("GIF", duration=100)[:-1]),
        frames=LAST,
        flags=("breaks off before its end",),
    ),
    # depth, colour and orientation
    **{f"tiff of {bits} bits": one("1.tif", tiff(deep(bits), bits)) for bits in (8, 10, 12, 14, 16)},
    **{f"pgm to {maximum}": one("1.pgm", pgm(maximum)) for maximum in (100, 255, 1023, 4095, 16383, 65535)},
    "png of 16 bits": one("1.png", png16(deep(16))),
    "png of 12 of 16 bits": refused("1.png", png16(deep(12)), "1.png: it has 16 bits, but no value above 4095"),
    "png of 12 of 16 bits that says so": one("1.png", with_chunk(png16(deep(12)), png_chunk(b"sBIT", b"\x0c"))),
    "png of 14 of 16 bits": Case(
        build=file("1.png", lambda: png16((deep(16) // 4).astype(np.uint16))),
        frames=(-1,),
        flags=("has 16 bits, but no value above 16383; if it is too dark, scale it to 0 to 65535",),
    ),
    "float tiff to 1": one("1.tif", float_tiff(1.0)),
    "float tiff to 255": one("1.tif", float_tiff(255.0)),
    "float tiff to 1.2": refused("1.tif", float_tiff(1.2), "its values go from 0 to 1.2"),
    "float tiff to 4095": refused("1.tif", float_tiff(4095.0), "its values go from 0 to 4095"),
    "tiff with white as 0": one("1.tif", tiff((255 - values()).astype(np.uint16), 8, white_is_zero=True)),
    "tiff of 16 bits with white as 0": one(
        "1.tif", tiff((65535 - deep(16)).astype(np.uint16), 16, white_is_zero=True)
    ),
    "avif": one("1.avif", saved(Image.fromarray(picture(4)), "AVIF", quality=100)),
    "jpeg 2000": one("1.jp2", saved(gray(), "JPEG2000")),
    "rgba": one("1.png", saved(gray().convert("RGBA"), "PNG")),
    "la": one("1.png", saved(gray().convert("LA"), "PNG")),
    "palette": one("1.png", saved(gray().convert("P"), "PNG")),
    "transparent palette": one("1.png", saved(gray().convert("P"), "PNG", transparency=100)),
    "cmyk jpeg": one("1.jpg", saved(gray().convert("CMYK"), "JPEG", quality=95)),
    "cmyk tiff": one("1.tif", saved(gray().convert("CMYK"), "TIFF")),
    "gif named .png": one("1.png", saved(gray(), "GIF")),
    "image of an unknown suffix": one("1.photo", saved(gray(), "PNG")),
    **{
        f"{kind} turned by {orientation}": one(f"1.{suffix}", turned(kind, orientation))
        for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif"))
        for orientation in (3, 6, 8)
    },
    # damaged images
    "jpeg without its end marker": one("1.jpg", jpeg()[:-2], "lacks its end marker, but no pixels"),
    "jpeg cut": refused("1.jpg", jpeg()[: len(jpeg()) * 99 // 100], "Corrupt JPEG data: premature end"),
    "jpeg with a byte too many": one(
        "1.jpg",
        jpeg()[:-2] + bytes(3) + jpeg()[-2:],
        "may be damaged: Corrupt JPEG data: 1 extraneous bytes before marker 0xd9",
    ),
    "png cut": refused("1.png", PNG[: len(PNG) // 2], "it breaks off before its"),
    "png without its end": one("1.png", PNG[:-12], "breaks off before its end"),
    "png with a wrong checksum of pixels": refused(
        "1.png", PNG.replace(b"IDAT", b"IDAU", 1), "its chunk IDAU has a wrong checksum"
    ),
    "png with a wrong checksum of a text": one(
        "1.png",
        with_chunk(PNG, png_chunk(b"tEXt", b"a\0b", sound=False)),
        "has a wrong checksum in its chunk tEXt, which is not read",
    ),
    "png with an odd colour profile": one("1.png", with_chunk(PNG, png_chunk(b"iCCP", b"bad\0\0bad"))),
    **{
        f"{kind.lower()} cut at {percent} %": refused(
            f"1.{suffix}", whole[: len(whole) * percent // 100], "1." + suffix
        )
        for kind, suffix, whole in (
            ("BMP", "bmp", saved(gray(), "BMP")),
            ("WEBP", "webp", saved(Image.fromarray(picture(4)), "WEBP", lossless=True)),
            ("TIFF", "tif", saved(Image.fromarray(picture(4)), "TIFF", compression="tiff_lzw")),
            ("PPM", "ppm", saved(Image.fromarray(picture(4)), "PPM")),
        )
        for percent in (50, 90, 99)
    },
    "tiff of 16 bits with a hole": refused("1.tif", hole(compressed_tiff()), "its page 0 cannot be decoded"),
    "one of several frames is damaged": Case(
        build=stills(
            [f"{number}.jpg" for number in range(COUNT)],
            lambda number: saved(Image.fromarray(picture(number)), "JPEG", quality=95)[
                : -200 if number == 8 else None
            ],
        ),
        frames=(1, 2, 3, 4, 5, 6, 7, 9, 10, 11),
        flags=("Corrupt JPEG data: premature end of data segment",),
    ),
    "frames beside clutter": Case(
        build=several(
            (
                stills(
                    [f"{number}" for number in range(COUNT)],
                    lambda n: saved(Image.fromarray(picture(n)), "PNG"),
                ),
                stills([".DS_Store", "._1.png", "Thumbs.db"], lambda _: b"clutter"),
            )
        ),
        frames=LAST,
    ),
    # lists
    "list": in_list(ROW),
    "list with semicolons": in_list(ROW.replace(",", ";")),
    "list with tabs": in_list(ROW.replace(",", "\t")),
    "list with quotes": in_list('"path","subject","label","start","end"\n"v/a.avi","anna","happy","2","4"\n'),
    "list with sep=;": in_list("sep=;\r\n" + ROW.replace(",", ";").replace("\n", "\r\n")),
    "list after an empty line": in_list("\r\n" + ROW),
    "list of old Macs": in_list(ROW.replace("\n", "\r")),
    "list with a byte order mark": in_list(codecs.BOM_UTF8 + ROW.encode()),
    "list in UTF-16": in_list(ROW.replace(",", "\t").encode("utf-16")),
    "list in UTF-16 BE": in_list(codecs.BOM_UTF16_BE + ROW.encode("utf-16-be")),
    "list in UTF-16 without a mark": in_list(ROW.encode("utf-16-le")),
    "list of pandas": in_list(",path,subject,label,start,end\n0,v/a.avi,anna,happy,2.0,4.0\n"),
    "list with decimal commas": in_list("path;subject;label;start;end\nv/a.avi;anna;happy;0,2s;0,4s\n"),
    **{
        f"seconds of {codec} in avi with b-frames": Case(
            build=listed(SECONDS.encode(), codec=codec, **B_FRAMES), list="clips.csv", frames=(2, 3, 4)
        )
        for codec in ("libx264", "mpeg4")
    },
    "list with backslashes": in_list(ROW.replace("v/a.avi", "v\\a.avi")),
    "list with composed accents": in_list(ROW.replace("v/a.avi", NFC), NFD),
    "list with accents in two parts": in_list(ROW.replace("v/a.avi", NFD), NFC),
    "list with a drive": refused_list(
        ROW.replace("v/a.avi", "C:\\v\\a.avi"), "clips.csv line 2: C:\\v\\a.avi is not there"
    ),
    "list in Latin-1": refused_list(
        ROW.replace("v/a.avi", NFC).encode("latin-1"),
        "m\\xfcller.avi is not there; if the name has accents",
        NFC,
    ),
    "list with a label in Latin-1": refused_list(
        ROW.replace("happy", "fröhlich").encode("latin-1"), "its label fr\\xf6hlich is not UTF-8"
    ),
    "list with half a frame": refused_list(ROW.replace("2,4", "2.5,4"), "start '2.5' and end '4' must both be"),
    "list without columns": refused_list("a.avi,anna,happy\n", "lacks path, subject, label"),
    "a spreadsheet": refused_list(b"PK\x03\x04...", "save it as CSV"),
    "a list that is not UTF-16": refused_list(codecs.BOM_UTF16_LE + b"abc", "save it as UTF-8"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_exactly_or_flagged_or_refused_by_name(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    CASES[name].build(tmp_path)
    capfd.readouterr()
    check(CASES[name], tmp_path)
    # no library prints what foldwise says itself
    assert capfd.readouterr() == ("", "")


def check(case: Case, root: Path) -> None:
    try:
        dataset = read_video_folder(root, manifest=case.list, colour="no")
    except FoldwiseError as error:
        said = error.message
        assert case.refused and case.refused in said  # noqa: PT018 - only some cases raise
        return
    if not dataset.sequences:
        said = "\n".join(f"{where}: {why}" for where, why in dataset.reasons(root).items())
        assert case.refused
        assert case.refused in said
        return
    (sequence,) = dataset.sequences
    read = read_last_frames(sequence, 10, colour=False)
    if case.refused:
        assert read.frames == ()
        assert case.refused in read.flags[0]
        with pytest.raises(Unreadable):
            list(VideoReader(sequence.files[0]))
        return
    assert len(read.frames) == len(case.frames)
    for frame, number in zip(read.frames, case.frames, strict=True):
        assert frame.image.shape == case.size[::-1]
        if number is not None and number >= 0:
            assert level(frame.image) == pytest.approx(40 + 15 * number, abs=5)
            assert corner(frame.image) < 12
    assert len(read.flags) == len(case.flags)
    assert all(flag.endswith(f" {words}") for flag, words in zip(read.flags, case.flags, strict=True)), (
        read.flags
    )
    if not case.list:
        # predict sees the same pixels and says the same
        whole = VideoReader(sequence.video or sequence.frames[0].parent)
        pictures = [cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY) for frame in whole][-10:]
        for frame, image, number in zip(read.frames, pictures, case.frames, strict=True):
            assert number is None or np.abs(frame.image.astype(int) - image).max() <= 2
        assert len(whole.flags()) >= len(read.flags)

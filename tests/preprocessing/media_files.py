"""Makes small video, image and list files of every kind that people have, sound and damaged.

Frame n has the level 40 + 15 n. Its top left quarter is dark, which shows whether it is turned or mirrored. Its
top right quarter is noise, so that encoders have something to write.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

WIDTH, HEIGHT, COUNT, RATE = 64, 48, 12, 10

Pixels = npt.NDArray[np.uint8]
Build = Callable[[Path], None]


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Frame `number`, uint8, height x width x 3."""
    pixels = np.full((height, width, 3), 40 + 15 * number, np.uint8)
    pixels[: height // 2, : width // 2] = 0
    noise = np.random.default_rng(number).integers(0, 255, (height // 2, width // 2, 1), np.uint8)
    pixels[: height // 2, width // 2 :] = noise
    return pixels


def level(image: Pixels) -> float:
    """The level of a frame that was read."""
    height, width = image.shape[:2]
    return float(image[height * 5 // 8 : height * 7 // 8, width // 4 : width * 3 // 4].mean())


def corner(image: Pixels) -> float:
    """The level of the quarter that is dark in an upright frame."""
    height, width = image.shape[:2]
    return float(image[height // 8 : height * 3 // 8, width // 8 : width * 3 // 8].mean())


# --- videos -------------------------------------------------------------------------------------------------


def video(
    name: str,
    codec: str = "libx264",
    *,
    pixels: str = "yuv420p",
    container: str | None = None,
    count: int = COUNT,
    ratio: Fraction | None = None,
    rotation: int = 0,
    full_range: bool = False,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    gop: int = COUNT,
) -> Build:
    """A video as the clip `anna/happy/NAME`."""

    def build(root: Path) -> None:
        path = clip_path(root, name)
        with av.open(str(path), "w", format=container, options=muxer or {}) as out:
            stream = out.add_stream(codec, rate=RATE, options={"g": str(gop), **(options or {})})
            assert isinstance(stream, VideoStream)
            turned = WIDTH if rotation % 180 == 0 else HEIGHT
            stream.width, stream.height, stream.pix_fmt = turned, WIDTH + HEIGHT - turned, pixels
            if ratio is not None:
                stream.sample_aspect_ratio = ratio
            if rotation:
                stream.set_display_rotation(rotation)
            if full_range:
                stream.codec_context.color_range = 2
            for number in range(count):
                upright = np.rot90(picture(number), -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), format="rgb24")
                frame = frame.reformat(format=pixels, dst_color_range=2 if full_range else None)
                frame.pts, frame.time_base = number, Fraction(1, RATE)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())

    return build


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size of each packet of a video, in the order of decoding."""
    with av.open(str(path)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def remuxed(build: Build, source: str, target: str, *, drop: Sequence[int] = (), shift: int = 0) -> Build:
    """The packets of another video without those to `drop`, `shift` frames earlier, in another file."""

    def rebuild(root: Path) -> None:
        build(root)
        old, new = clip_path(root, source), clip_path(root, target)
        with av.open(str(old)) as container, av.open(str(new), "w") as out:
            stream = container.streams.video[0]
            copy = out.add_stream_from_template(stream)
            ticks = round(shift / RATE / (stream.time_base or 1))
            for number, packet in enumerate(container.demux(stream)):
                if packet.dts is not None and packet.pts is not None and number not in drop:
                    packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
                    packet.stream = copy
                    out.mux(packet)
        old.unlink()

    return rebuild


def changed(build: Build, name: str, change: Callable[[Path, bytes], bytes]) -> Build:
    """A file whose bytes are changed after it was made."""

    def rebuild(root: Path) -> None:
        build(root)
        path = clip_path(root, name)
        path.write_bytes(change(path, path.read_bytes()))

    return rebuild


def cut(share: float) -> Callable[[Path, bytes], bytes]:
    """The beginning of a file."""
    return lambda _, content: content[: int(len(content) * share)]


def in_packet(index: int, written: bytes) -> Callable[[Path, bytes], bytes]:
    """Other bytes near the end of a packet, as many as are there."""

    def change(path: Path, content: bytes) -> bytes:
        position, size = packets(path)[index]
        start, end = position + size * 7 // 8, position + size - 4
        new = written[: end - start]
        return content[:start] + new + content[start + len(new) :]

    return change


def zeros_in_packet(index: int) -> Callable[[Path, bytes], bytes]:
    """A hole in a packet."""
    return in_packet(index, bytes(40))


def flips_in_packet(index: int, count: int = 40) -> Callable[[Path, bytes], bytes]:
    """Random bytes in a packet."""
    return in_packet(index, np.random.default_rng(0).integers(1, 255, count, np.uint8).tobytes())


def sound(name: str) -> Build:
    """A file with sound only."""

    def build(root: Path) -> None:
        with av.open(str(clip_path(root, name)), "w") as out:
            stream = out.add_stream("aac", rate=8000)
            assert isinstance(stream, AudioStream)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            out.mux(stream.encode(frame))
            out.mux(stream.encode())

    return build


# --- images -------------------------------------------------------------------------------------------------


def clip_path(root: Path, name: str) -> Path:
    """Where the file of a clip is."""
    path = root / "anna" / "happy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def file(name: str, content: Callable[[], bytes]) -> Build:
    """A file as the clip `anna/happy/NAME`."""

    def build(root: Path) -> None:
        clip_path(root, name).write_bytes(content())

    return build


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gray(number: int = 4) -> Image.Image:
    """Frame `number` in gray, without noise, so that its values are exact in every format."""
    return Image.fromarray(values(number))


def values(number: int = 4) -> Pixels:
    """The pixels of `gray`."""
    pixels = np.full((HEIGHT, WIDTH), 40 + 15 * number, np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = 0
    pixels[-2:, -2:] = 255  # so that the largest value shows the range
    return pixels


def animation(kind: str, count: int = COUNT, **options: object) -> bytes:
    """An image file of several pages."""
    first, *others = (Image.fromarray(picture(number)) for number in range(count))
    return saved(first, kind, save_all=True, append_images=others, **options)


def tiff(samples: npt.NDArray[np.uint16], bits: int, *, white_is_zero: bool = False) -> bytes:
    """An uncompressed gray TIFF whose samples of any depth are packed without gaps."""
    rows = []
    for row in samples:
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    data = b"".join(rows)
    data += b"\0" * (len(data) % 2)
    height, width = samples.shape
    tags = {
        **{256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 0 if white_is_zero else 1)},
        **{273: (4, 8), 277: (3, 1), 278: (4, height), 279: (4, len(data))},
    }
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4)


def pgm(maximum: int) -> bytes:
    """A PGM whose largest value is `maximum`."""
    scaled = np.rint(values() / 255 * maximum)
    return (
        f"P5 {WIDTH} {HEIGHT} {maximum}\n".encode() + scaled.astype(">u2" if maximum > 255 else "u1").tobytes()
    )


def png_chunk(name: bytes, content: bytes, *, sound: bool = True) -> bytes:
    """A chunk of a PNG, with a right or a wrong checksum."""
    checksum = zlib.crc32(name + content) ^ (0 if sound else 1)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, chunk: bytes) -> bytes:
    """A PNG with a further chunk after its header."""
    return png[:33] + chunk + png[33:]


def several(builds: Iterable[Build]) -> Build:
    """All of these."""

    def build(root: Path) -> None:
        for each in builds:
            each(root)

    return build


def stills(names: Sequence[str], content: Callable[[int], bytes]) -> Build:
    """The images of one clip, `anna/happy/clip/NAME`."""

    def build(root: Path) -> None:
        for number, name in enumerate(names):
            path = clip_path(root, f"clip/{name}")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content(number))

    return build


# --- lists --------------------------------------------------------------------------------------------------


def listed(content: bytes, name: str = "v/a.avi", codec: str = "mjpeg", **options: str) -> Build:
    """A list beside a video of which it names a part."""

    def build(root: Path) -> None:
        video("made.avi", codec, pixels="yuvj420p" if codec == "mjpeg" else "yuv420p", options=options)(root)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        clip_path(root, "made.avi").rename(path)
        (root / "clips.csv").write_bytes(content)

    return build

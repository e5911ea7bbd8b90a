"""rectangles and words -> a PNG file, with nothing but zlib."""

import struct
import zlib
from pathlib import Path

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (40, 40, 40)
GREY: Colour = (222, 222, 222)
GREEN: Colour = (64, 160, 96)
BLUE: Colour = (70, 120, 200)
RED: Colour = (208, 64, 56)
YELLOW: Colour = (226, 176, 56)

# Five rows of three dots for each letter, each row an octal digit.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:%/-+()"
_DOTS = (
    "2575565656344436555674647746443455355755722271115255655444475775565555255526564425563656553421672222"
    "5555755552557755525555222712477555726227612476121655711746163475771222757577571600000000020002402020"
    "512451124400700027202444221112"
)
_FONT = {letter: _DOTS[5 * at : 5 * at + 5] for at, letter in enumerate(_LETTERS)}


class Picture:
    """A white picture that is drawn on.

    Args:
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._rows = [bytearray(WHITE * width) for _ in range(height)]

    def box(self, left: int, top: int, width: int, height: int, colour: Colour) -> None:
        """A filled rectangle; what lies outside of the picture is left out."""
        left, right = max(left, 0), min(left + width, self._width)
        for row in self._rows[max(top, 0) : max(top + height, 0)]:
            row[3 * left : 3 * right] = bytes(colour * max(right - left, 0))

    def words(self, left: int, top: int, text: str, colour: Colour = BLACK, dot: int = 2) -> None:
        """One line of capitals, six dots high; a letter that the font has not is a space."""
        for number, letter in enumerate(text.upper()):
            for y, digit in enumerate(_FONT.get(letter, "00000")):
                for x in range(3):
                    if int(digit, 8) >> (2 - x) & 1:
                        self.box(left + (4 * number + x) * dot, top + y * dot, dot, dot, colour)

    def save(self, path: Path) -> None:
        """Write it as PNG (https://www.w3.org/TR/png-3/), eight bits each of red, green and blue."""
        header = struct.pack(">IIBBBBB", self._width, len(self._rows), 8, 2, 0, 0, 0)
        data = zlib.compress(b"".join(b"\0" + bytes(row) for row in self._rows), 9)
        chunks = b"".join(_chunk(*chunk) for chunk in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

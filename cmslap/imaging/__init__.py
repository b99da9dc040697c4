"""Images: files, modes, colour, MATLAB-compatible resizing. Of ours it needs only ``errors`` and ``files``."""

from cmslap.imaging.colour import (
    join_colour,
    luma,
    rgb_to_ycbcr,
    split_colour,
    spread_colour,
    store_planes,
    to_planes,
    ycbcr_to_rgb,
)
from cmslap.imaging.files import (
    READABLE,
    WRITABLE,
    check_writable,
    find_images,
    fitting,
    read_image,
    read_planes,
    write_image,
)
from cmslap.imaging.modes import ImageError, ImageWarning, interpolable, to_8_bits
from cmslap.imaging.resize import imresize, imresize_rows

__all__ = [
    "READABLE",
    "WRITABLE",
    "ImageError",
    "ImageWarning",
    "check_writable",
    "find_images",
    "fitting",
    "imresize",
    "imresize_rows",
    "interpolable",
    "join_colour",
    "luma",
    "read_image",
    "read_planes",
    "rgb_to_ycbcr",
    "split_colour",
    "spread_colour",
    "store_planes",
    "to_8_bits",
    "to_planes",
    "write_image",
    "ycbcr_to_rgb",
]

"""Images: files, modes, colour, MATLAB-compatible resizing. Of ours it needs only ``errors`` and ``files``."""

from cmslap.imaging.files import READABLE as READABLE
from cmslap.imaging.files import WRITABLE as WRITABLE
from cmslap.imaging.files import check_writable as check_writable
from cmslap.imaging.files import find_images as find_images
from cmslap.imaging.files import fitting as fitting
from cmslap.imaging.files import read_image as read_image
from cmslap.imaging.files import read_planes as read_planes
from cmslap.imaging.files import write_image as write_image
from cmslap.imaging.resize import imresize as imresize
from cmslap.imaging.resize import imresize_rows as imresize_rows
from cmslap.imaging.samples import ImageError as ImageError
from cmslap.imaging.samples import ImageWarning as ImageWarning
from cmslap.imaging.samples import interpolable as interpolable
from cmslap.imaging.samples import join_colour as join_colour
from cmslap.imaging.samples import luma as luma
from cmslap.imaging.samples import rgb_to_ycbcr as rgb_to_ycbcr
from cmslap.imaging.samples import split_colour as split_colour
from cmslap.imaging.samples import spread_colour as spread_colour
from cmslap.imaging.samples import store_planes as store_planes
from cmslap.imaging.samples import to_8_bits as to_8_bits
from cmslap.imaging.samples import to_planes as to_planes
from cmslap.imaging.samples import ycbcr_to_rgb as ycbcr_to_rgb

"""A small picture of what can't be used, as far as Pillow still draws it: for the quarantine."""

from __future__ import annotations

import io
import warnings

from PIL import Image, ImageFile

from pipeline import images
from pipeline.ingest import headers

SIDE = 64
# Drawing takes a decoding more: what is larger than this stays without a picture.
_MOST_PIXELS = 20_000_000
_SMALL = 16
_QUALITY = 80


def draw(data: bytes) -> bytes | None:
    """Returns a PNG or JPEG of at most SIDE x SIDE pixels, or None where nothing can be seen.

    Args:
      data: a whole file, or what there is of it: the part that is missing stays grey.
    """
    form = headers.sniff(data[: headers.SNIFF_BYTES])
    if form is None or (form == "webp" and _area(headers.webp_size(data)) > _MOST_PIXELS):
        return None
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=images.PLUGINS[form])
            if _area(image.size) > _MOST_PIXELS:
                return None
            image.thumbnail((SIDE, SIDE))
            small = image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    except Exception:  # noqa: BLE001 - what is damaged raises whatever it likes
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    out = io.BytesIO()
    if max(small.size) <= _SMALL:
        small.save(out, "PNG")
    else:
        small.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _area(size: tuple[int, int] | None) -> int:
    # A WebP takes its canvas when it is opened: its header is looked at before.
    return size[0] * size[1] if size else 0

"""Small pictures."""

import io

from PIL import Image

from stages.artifacts.problems import EncodedImages


def png(width=3, height=2, colour="red"):
    """An encoded image in `datasets`' layout."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def sizes(problem):
    return [image.size for image in EncodedImages(problem["images"], "test")]

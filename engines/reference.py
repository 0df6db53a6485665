"""Who a stream is to be, from a picture: latents that an avatar's face is drawn from (`Student.start`)."""

from __future__ import annotations

import io
from functools import cached_property
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from PIL import Image, ImageOps

from engines.openvino import settings_for
from streamgen.config import StudentConfig
from streamgen.student import ENCODE_GRAPH, Reference, Student

_MOST_PIXELS = 4096 * 4096
_FORMATS = "PNG", "JPEG", "WEBP"


class PictureError(ValueError):
    """A picture cannot say who a stream is to be; the message says why."""


class References:
    """Reads pictures for one student, on one core. The encoder is compiled at the first. Not thread-safe: one caller at
    a time.
    """

    def __init__(self, student: Student) -> None:
        self._student = student

    def read(self, file: bytes) -> Reference:
        """Of the picture in a PNG, JPEG or WebP file: of its middle, at the size of the student's frames.

        Raises PictureError, also where the autoencoder does not know such a picture: nobody would recognise who comes
        of it.
        """
        config = self._student.config
        if config.likeness is None:
            raise PictureError(f"student {config.name} cannot be whoever a picture shows")
        picture = _opened(file, config)
        latents, known = self._encoder(picture[None]).to_tuple()
        error = np.square(known[0].astype(np.float64) - picture).mean()
        reached = 10 * np.log10(255**2 / max(float(error), 1e-9))
        if reached < config.likeness:
            raise PictureError(
                f"student {config.name} knows no such pictures (it sees this one with {reached:.1f} dB, and needs "
                f"{config.likeness:g}): give one like those it was trained on, of a head and shoulders"
            )
        looked_at = picture if config.vae.warp_dim else picture[:0, :0]
        return Reference(latents[0].astype(np.float16), looked_at)

    @cached_property
    def _encoder(self) -> Any:
        core = ov.Core()
        settings = settings_for("fp32") | {"INFERENCE_NUM_THREADS": "1"}
        return core.compile_model(core.read_model(self._student.file(ENCODE_GRAPH)), "CPU", settings)


def _opened(file: bytes, config: StudentConfig) -> NDArray[np.uint8]:
    """RGB [H, W, 3]. Raises PictureError."""
    try:
        with Image.open(io.BytesIO(file), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise PictureError(f"a picture of {image.width}x{image.height} pixels: at most {_MOST_PIXELS} in all")
            image.draft("RGB", (2 * config.width, 2 * config.height))
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            middle = ImageOps.fit(upright, (config.width, config.height), Image.Resampling.LANCZOS)
            shown = Image.alpha_composite(Image.new("RGBA", middle.size, "black"), middle)
            return np.asarray(shown.convert("RGB"))
    except PictureError:
        raise
    except Exception as error:
        # Whatever a file does to the libraries that read it, it says nobody.
        raise PictureError(f"no picture that can be read as {', '.join(_FORMATS)}") from error

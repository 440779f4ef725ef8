"""The child of `isolation`: decodes files named on stdin with GDCM and writes the pixels to stdout.

Run as a script, so it imports nothing of the service. One request is a line of JSON {"path", "syntax", "frame"}; the
answer is a line of JSON {"dtype", "shape"} followed by the pixels, or {} if decoding failed.
"""

import json
import logging
import sys
import warnings
from typing import BinaryIO

import pydicom
from pydicom.pixels.decoders.base import get_decoder

# GDCM takes what a damaged header asks for; the rows and columns of a real image need a small part of this.
MEMORY_BYTES = 4 * 1024**3


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until stdin closes."""
    dataset, path = pydicom.Dataset(), ""  # the latest file: frames of one object are asked for one after the other
    for line in requests:
        request = json.loads(line)
        try:
            if path != request["path"]:
                path = ""
                dataset = pydicom.dcmread(request["path"], force=True)
                path = request["path"]
            decoder = get_decoder(request["syntax"])
            pixels, _ = decoder.as_array(dataset, index=request["frame"], decoding_plugin="gdcm")
        except Exception:  # damaged data surface as almost any exception; the parent knows what to say
            logging.getLogger(__name__).debug("decoding failed", exc_info=True)
            answers.write(b"{}\n")
        else:
            answers.write(json.dumps({"dtype": pixels.dtype.str, "shape": pixels.shape}).encode() + b"\n")
            answers.write(pixels.tobytes())
        answers.flush()


def _limit_resources() -> None:
    """No core dump, which would hold pixels, and no more memory than an image can need."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _limit_resources()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    serve(sys.stdin.buffer, sys.stdout.buffer)

"""Captions for pictures that have none: from their file names, or by an image-to-text model of transformers.

What the model wrote is kept in `.captions/` until metadata.jsonl holds it, so that a killed run loses none of it.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from controlkit.data.maps import Failed, failing_alone
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]

KEPT = ".captions"
MOST_TOKENS = 60  # of the model's own vocabulary; with those CLIP adds, its 77 are rarely passed


def caption_from_name(name: str) -> str:
    """ "sub/a_red-ball.01.jpg" -> "a red ball 01"."""
    return " ".join(re.split(r"[\s_.-]+", PurePosixPath(name).stem)).strip()


@dataclass
class Captioner:
    """A model on its device, for pictures below `folder` that have no caption in `captioned` and none beside them."""

    model: str
    device: str | None
    offline: bool
    folder: Path
    out: Path
    captioned: frozenset[str]
    texts: dict[str, str] = field(default_factory=dict)  # by file name: what it has written for this dataset

    type = "caption"
    together = True

    def missing(self, name: str, source_sha256: str, *, even_if_there: bool = False) -> Path | None:
        """Where the caption of a picture is to be kept, if it is to be written; `even_if_there` is about maps."""
        if name in self.captioned or (self.folder / name).with_suffix(".txt").exists():
            return None
        kept = self.out / KEPT / source_sha256[:2] / f"{source_sha256}.json"
        try:
            found = json.loads(kept.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return kept
        if found.get("model") != self.model:
            return kept
        self.texts[name] = found["text"]
        return None

    def make(self, names: Sequence[str], images: Sequence[Image]) -> list[str | Failed]:
        return failing_alone(self.type, self._captions, names, images)

    def write(self, name: str, made: str, kept: Path) -> None:
        atomic_write_text(kept, json.dumps({"model": self.model, "text": made}, ensure_ascii=False) + "\n")
        self.texts[name] = made

    def forget(self) -> None:
        """metadata.jsonl holds all of it now."""
        shutil.rmtree(self.out / KEPT, ignore_errors=True)

    def _captions(self, names: Sequence[str], images: Sequence[Image]) -> list[str]:
        import torch

        read_pictures, tokenizer, network = self.network
        pixels = read_pictures(images=list(images), return_tensors="pt")["pixel_values"].to(network.device)
        with torch.inference_mode():
            tokens = network.generate(pixel_values=pixels, do_sample=False, max_new_tokens=MOST_TOKENS)
        return [" ".join(text.split()) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @cached_property
    def network(self) -> tuple[Any, Any, Any]:
        """What reads pictures, what reads tokens, and the model between them."""
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        where = Path(self.model).expanduser()
        name = str(where) if where.exists() else self.model
        try:
            network = AutoModelForImageTextToText.from_pretrained(name, local_files_only=self.offline)
            pictures = AutoImageProcessor.from_pretrained(name, local_files_only=self.offline)
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=self.offline)
        except (OSError, ValueError, KeyError) as reason:
            text = " ".join(str(reason).split())[:200]
            raise RequestError(
                f"--caption {self.model}: no image-to-text model that transformers can load ({text}); name a folder or "
                f"a hub id, e.g. Salesforce/blip-image-captioning-base (990 MB, BSD-3-Clause)"
            ) from None
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return pictures, tokenizer, network.to(device).eval()

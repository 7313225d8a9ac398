"""What the locked networks make of pictures and captions, and maps at the size they are trained at: made once, kept.

Stores (`training.store`) below CACHE/encoded, each under a recipe of what made its entries:
    pictures    mean and log-variance of the VAE's posterior, so that the draw stays random; the sizes SDXL is told
    maps        packed: a bit a pixel where the map is black and white, a byte where it is grey; each type for itself,
                so that another type in the same net makes its own alone
    pixels      of the pictures that are to be inpainted, since a hole is cut into them anew each epoch
    texts       each caption once, and the empty one; which prompts are emptied is drawn at run time
An entry's key is what its row holds, by the bytes themselves: a picture under another name, another learning rate or
another run find it; a picture replaced in place, an edited caption or other weights do not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotators.contract import in_three_channels
from controlkit.data.contents import contents
from controlkit.data.pictures import upright_size
from controlkit.files import cache_folder
from controlkit.training.batches import to_pixels
from controlkit.training.objective import encode_prompts, posterior_moments
from controlkit.training.store import Store, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from controlkit.data.readable import Readable
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.objective import Models
    from controlkit.training.store import Entries, Tensors

View = tuple[int, bool]  # the number of a row, and whether it is mirrored

FORMAT = 1  # raised when a change here or in the geometry of pictures and maps changes what is kept

WITHOUT_EFFECT = frozenset(
    {
        *("_name_or_path", "_diffusers_version", "transformers_version", "sample_size", "up_block_types"),
        *("scaling_factor", "shift_factor", "latents_mean", "latents_std"),
    }
)
"""What a VAE's or text encoder's config says that does not reach what is kept."""


MASKS = "loss masks"
"""Among the kinds of maps: no control type."""


@dataclass(frozen=True)
class Keys:
    """Of what is kept of a row. Maps that are drawn anew each epoch are not."""

    picture: str
    maps: dict[str, str]  # by type
    mask: str | None


class Cache:
    """The entries of a run's rows, by the numbers that they have in its `ControlRows` and whether they are mirrored."""

    def __init__(
        self,
        keys: dict[View, Keys],
        pictures: Entries,
        maps: dict[str, Entries],
        texts: Entries,
        shown: Entries | None,
    ) -> None:
        self.keys = keys
        self.pictures, self.maps, self.texts, self.shown = pictures, maps, texts, shown

    def picture(self, number: int, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        entry = self.pictures[self.keys[number, mirrored].picture]
        return entry["moments"], entry["sizes"]

    def pixels(self, number: int, mirrored: bool) -> NDArray[np.uint8]:
        assert self.shown is not None, "pictures are kept where they are to be inpainted"
        return unpack(self.shown[self.keys[number, mirrored].picture])

    def control(self, number: int, type: str, mirrored: bool) -> NDArray[np.uint8]:
        return unpack(self.maps[type][self.keys[number, mirrored].maps[type]])

    def mask(self, number: int, mirrored: bool) -> NDArray[np.uint8] | None:
        key = self.keys[number, mirrored].mask
        return unpack(self.maps[MASKS][key]) if key else None

    def text(self, text: str) -> Tensors:
        return self.texts[digest(text)]


def cache_rows(
    data: ControlRows,
    numbers: Sequence[int],
    models: Models,
    processes: Processes,
    *,
    dataset: str,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Give `data` a cache that holds these rows; how many entries of each kind had to be made for it. All processes
    call it together. `dataset` is what the rows were asked for by."""
    rows = [data.rows[number] for number in numbers]
    pictures = contents([row.picture for row in rows], dataset, processes)

    def digests(files: list[Readable | None], name: str) -> dict[int, str]:
        there = {number: file for number, file in zip(numbers, files, strict=True) if file is not None}
        return dict(zip(there, contents(list(there.values()), f"{dataset} {name}", processes), strict=True))

    maps = {type: digests([row.controls.get(type) for row in rows], f"{type} maps") for type in data.types}
    masks = digests([row.mask for row in rows], "masks")
    keys = {
        (number, mirrored): Keys(
            digest(picture, *seen),
            {type: digest(picture, of_type[number], *seen) for type, of_type in maps.items() if number in of_type},
            digest(picture, masks[number], "mask", *seen) if number in masks else None,
        )
        for number, row, picture in zip(numbers, rows, pictures, strict=True)
        for mirrored in ((False, True) if data.mirrors(row) else (False,))
        for seen in [(data.geometry.resolution, data.geometry.step, mirrored)]
    }
    device = models.pipeline.unet.device

    def encode_picture(loaded: tuple[NDArray[np.uint8], tuple[int, ...]]) -> Tensors:
        image, sizes = loaded
        moments = posterior_moments(models.pipeline.vae, to_pixels(image)[None].to(device))[0]
        return {"moments": moments, "sizes": torch.tensor(sizes)}

    def load_picture(view: View) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        number, mirrored = view
        return data.picture(data.rows[number], mirrored)

    def load_map(wanted: tuple[View, str]) -> NDArray[np.uint8]:
        (number, mirrored), type = wanted
        row = data.rows[number]
        return data.control(row, type, *upright_size(row.picture), mirrored)

    def load_mask(view: View) -> NDArray[np.uint8]:
        number, mirrored = view
        row = data.rows[number]
        fitted = data.mask(row, *upright_size(row.picture), mirrored)
        assert fitted is not None, "a key stands for a file"
        return fitted

    def encode_text(text: str) -> Tensors:
        return {name: tensor[0] for name, tensor in encode_prompts(models, [text], device).items()}

    views = {key.picture: view for view, key in keys.items()}
    of_pictures, made_pictures = _store("pictures", picture_recipe(models)).fill(
        views,
        load_picture,
        encode_picture,
        processes,
        say,
    )
    of_maps, made_maps = {}, 0
    for type in data.types:
        to_fit = {key.maps[type]: (view, type) for view, key in keys.items() if type in key.maps}
        store = _store("maps", map_recipe(data.values[type]))
        of_maps[type], made = store.fill(to_fit, load_map, pack, processes, say)
        made_maps += made
    of_masks = {key.mask: view for view, key in keys.items() if key.mask}
    of_maps[MASKS], made = _store("maps", map_recipe(None)).fill(of_masks, load_mask, pack, processes, say)
    made_maps += made
    of_texts, made_texts = _store("texts", text_recipe(models)).fill(
        {digest(text): text for text in {"", *(caption for row in rows for caption in row.captions)}},
        lambda text: text,
        encode_text,
        processes,
        say,
    )
    shown, made_pixels = None, {}
    if data.inpaints:
        shown, made = _store("pixels", map_recipe(None)).fill(
            views, lambda view: load_picture(view)[0], pack, processes, say
        )
        made_pixels = {"pixels": made}
    data.cache = Cache(keys, of_pictures, of_maps, of_texts, shown)
    return {"pictures": made_pictures, "maps": made_maps, "texts": made_texts, **made_pixels}


def picture_recipe(models: Models) -> dict[str, Any]:
    """What decides the moments of a picture: of the VAE, its encoding half."""
    vae = models.pipeline.vae
    half = {name: tensor for name, tensor in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    return {
        "format": FORMAT,
        "weights": weights_digest(half),
        "config": _config(vae),
        **_numerics(vae.dtype, models.pipeline.unet.device),
        "versions": _versions("torch", "diffusers", "pillow", "opencv-python-headless"),
    }


def text_recipe(models: Models) -> dict[str, Any]:
    """What decides the embedding of a caption: tokenizers and text encoders."""
    pipeline, parts = models.pipeline, models.base.text_parts()
    encoders = [getattr(pipeline, f"text_encoder{part}") for part in parts]
    return {
        "format": FORMAT,
        "pipeline": type(pipeline).__name__,
        "weights": [weights_digest(encoder.state_dict()) for encoder in encoders],
        "configs": [_config(encoder) for encoder in encoders],
        "tokenizers": [_tokenizer(getattr(pipeline, f"tokenizer{part}")) for part in parts],
        **_numerics(encoders[0].dtype, pipeline.unet.device),
        "versions": _versions("torch", "diffusers", "transformers", "tokenizers"),
    }


def map_recipe(values: frozenset[int] | None) -> dict[str, Any]:
    """What decides a map at its size: the values that its type allows."""
    return {
        "format": FORMAT,
        "values": None if values is None else sorted(values),
        "versions": _versions("pillow", "opencv-python-headless"),
    }


def pack(control_map: NDArray[np.uint8]) -> Tensors:
    """A map in as few bytes as hold it: RGB (H, W, 3), grey (H, W), or bits."""
    if (control_map != control_map[:, :, :1]).any():
        return {"rgb": torch.from_numpy(control_map)}
    grey = np.ascontiguousarray(control_map[:, :, 0])
    if not np.isin(grey, (0, 255)).all():
        return {"grey": torch.from_numpy(grey)}
    return {"bits": torch.from_numpy(np.packbits(grey != 0, axis=1)), "width": torch.tensor(grey.shape[1])}


def unpack(packed: Tensors) -> NDArray[np.uint8]:
    """The map (H, W, 3) again."""
    if "rgb" in packed:
        return np.array(packed["rgb"].numpy())
    if "grey" in packed:
        grey = packed["grey"].numpy()
    else:
        grey = np.unpackbits(packed["bits"].numpy(), axis=1, count=int(packed["width"])) * np.uint8(255)
    return in_three_channels(grey)


def weights_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of named tensors: what computes, wherever it was loaded from."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _store(kind: str, recipe: dict[str, Any]) -> Store:
    return Store(cache_folder() / "encoded" / kind, recipe)


def _config(network: Any) -> dict[str, Any]:
    config = network.config
    values: dict[str, Any] = dict(config) if isinstance(config, dict) else config.to_dict()
    return {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}


def _tokenizer(tokenizer: Any) -> str:
    """All that a tokenizer does to a text. How it cuts and pads is set by the pipeline at each call."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest({**rules, "truncation": None, "padding": None}, tokenizer.model_max_length)


def _numerics(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """How it is computed: on another kind of device, or with TF32, the same networks round differently."""
    return {
        "dtype": dtype,
        "device": device.type,
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
    }


def _versions(*names: str) -> dict[str, str]:
    return {name: version(name).partition("+")[0] for name in names}

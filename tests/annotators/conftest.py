"""Networks with random weights, written once for the session."""

import functools

import pytest
import torch

from annotators import ANNOTATORS
from tests.annotators.random_weights import WRITERS, needs_weights

SMALL = {"segmentation=sam": {"model": "vit_t", "points": 2}, "depth=depth-anything": {"resolution": 70}}


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory):
    """The folder with random weights of a (type, backend)."""
    folders = {}

    def write(type_name, backend):
        writer = WRITERS[type_name, backend]
        if writer not in folders:
            folders[writer] = tmp_path_factory.mktemp(writer.__name__)
            torch.manual_seed(0)
            writer(folders[writer])
        return folders[writer]

    return write


@pytest.fixture(scope="session")
def make(weights_of):
    """Any annotator, ready to work; a network looks at 64 pixels or so unless told otherwise. Each is loaded once."""

    @functools.cache
    def create(type_name, backend, **options):
        if needs_weights(type_name, backend):
            options = {"resolution": 64, **SMALL.get(f"{type_name}={backend}", {}), **options}
            options = {"weights": str(weights_of(type_name, backend)), "device": "cpu", **options}
        return ANNOTATORS.create(type_name, backend, **options)

    return create

"""What the tests of training share."""

import pytest


@pytest.fixture(scope="session")
def whole(dataset, tmp_path_factory):
    """The unbroken run of four steps that others are held against. Shared: read it, or copy it."""
    from tests.training.test_train import train

    run = tmp_path_factory.mktemp("whole") / "run"
    train(dataset, run)
    return run

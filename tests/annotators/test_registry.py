"""The registry: types, their backends, parameters by their type, and what is said of names it does not know."""

from dataclasses import dataclass
from typing import Literal

import pytest

from annotators import ANNOTATORS
from annotators.registry import Registry


@pytest.fixture
def registry():
    """Two ways of making one thing; the second is the default."""
    made = Registry("annotator")

    @made.register("edges", backend="quick")
    @dataclass(frozen=True)
    class Quick:
        low: int = 1

    @made.register("edges", backend="slow", default=True)
    @dataclass(frozen=True)
    class Slow:
        mode: Literal["fixed", "auto"] = "fixed"
        weights: str | None = None

    return made


def test_parameters_are_read_by_their_type():
    assert ANNOTATORS.create("canny", low="80").low == 80
    with pytest.raises(ValueError, match=r"canny\.low='many': expected int"):
        ANNOTATORS.create("canny", low="many")
    with pytest.raises(ValueError, match="canny: low=300 and high=200: expected 0 <= low <= high"):
        ANNOTATORS.create("canny", low=300)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown annotator 'cany': did you mean 'canny'"):
        ANNOTATORS.create("cany")
    with pytest.raises(ValueError, match="no parameter 'hihg': did you mean 'high'"):
        ANNOTATORS.create("canny", hihg=1)


def test_a_name_is_given_once():
    registry = Registry("annotator")
    registry.register("x")(type("First", (), {}))
    with pytest.raises(ValueError, match="'x' is registered twice"):
        registry.register("x")(type("Second", (), {}))


def test_a_type_has_backends_and_the_default_comes_first(registry):
    assert list(registry) == ["edges"]
    assert registry.backends("edges") == ("slow", "quick")
    assert registry["edges"] is registry.class_of("edges", "slow")
    assert (registry["edges"].type, registry["edges"].backend) == ("edges", "slow")
    assert registry.create("edges", "quick", low="3").low == 3


def test_unknown_backends_and_parameters_name_what_is_there(registry):
    with pytest.raises(ValueError, match="'edges' has no backend 'quik': did you mean 'quick'"):
        registry.create("edges", "quik")
    with pytest.raises(ValueError, match="'edges=quick' has no parameter 'mode': known: low"):
        registry.create("edges", "quick", mode="auto")


def test_a_choice_and_an_optional_text_are_read_as_such(registry):
    assert registry.create("edges", mode="auto", weights="none").weights is None
    assert registry.create("edges", weights="a/b").weights == "a/b"
    with pytest.raises(ValueError, match=r"edges\.mode='atuo': did you mean 'auto'"):
        registry.create("edges", mode="atuo")


def test_a_backend_is_given_once(registry):
    with pytest.raises(ValueError, match="'edges=quick' is registered twice"):
        registry.register("edges", backend="quick")(type("Other", (), {}))

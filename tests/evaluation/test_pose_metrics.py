"""Average precision of poses: cases that can be computed by hand, by COCO's definition."""

import numpy as np
import pytest

from annotators.keypoints import People, Person
from controlkit.evaluation.pose_metrics import average_precision, matches, share_found, similarity

RIGHT_SHOULDER, LEFT_SHOULDER, NECK = 2, 5, 1
AREA = 0.53 * 20 * 40


def person(shift=0.0, confidence=1.0, at=(0, 0)):
    """Two shoulders 20 pixels beside and 40 below each other, moved by `shift`."""
    body = np.zeros((18, 3))
    for joint, place in ((RIGHT_SHOULDER, (10, 10)), (LEFT_SHOULDER, (30, 50))):
        body[joint] = [place[0] + at[0] + shift, place[1] + at[1], confidence]
    return Person(body)


def people(*persons):
    return People(400, 400, persons)


def test_similarity_is_cocos():
    """exp(-d^2 / (2 area (2 spread)^2)); the spread of a shoulder is 0.079."""
    assert similarity(person(), person()) == 1
    for shift in (1.0, 3.0):
        expected = np.exp(-(shift**2) / (2 * AREA * (2 * 0.079) ** 2))
        assert similarity(person(shift), person()) == pytest.approx(expected)
    half = person()
    half.body[LEFT_SHOULDER] = 0  # not found
    assert similarity(half, person()) == 0.5
    with_neck = person()
    with_neck.body[NECK] = [300, 300, 1]  # COCO knows no neck
    assert similarity(person(), with_neck) == 1


def test_precision_is_the_mean_over_the_thresholds():
    """A similarity of 0.72 passes 0.50, 0.55, 0.60, 0.65, 0.70: five of ten."""
    shift = np.sqrt(-np.log(0.72) * 2 * AREA * (2 * 0.079) ** 2)
    assert average_precision([matches(people(person(shift)), people(person()))]) == pytest.approx(0.5)
    assert average_precision([matches(people(person()), people(person()))]) == 1


def test_precision_at_recalls():
    """One of two people is found, which is 51 of the 101 recalls; a wrong one that is surer halves the precision."""
    two = people(person(), person(at=(200, 200)))
    wrong = person(at=(100, 300), confidence=0.5)
    assert average_precision([matches(people(person(confidence=0.9), wrong), two)]) == pytest.approx(51 / 101)
    assert average_precision([matches(people(person(confidence=0.2), wrong), two)]) == pytest.approx(51 / 101 / 2)


def test_a_person_is_found_once():
    twice = people(person(confidence=0.9), person(confidence=0.8))
    count, made = matches(twice, people(person()))
    assert count == 1
    assert [all(met) for _, met in made] == [True, False]


def test_pictures_are_ranked_together():
    """Of two pictures with a person each, one found and one not; the found one is less sure than a ghost elsewhere."""
    one = matches(people(person(confidence=0.4)), people(person()))
    other = matches(people(person(at=(200, 200), confidence=0.9)), people(person()))
    assert average_precision([one, other]) == pytest.approx(51 / 101 / 2)
    assert average_precision([one, matches(people(), people(person()))]) == pytest.approx(51 / 101)


def test_where_nobody_is():
    assert average_precision([matches(people(person()), people())]) is None
    assert average_precision([matches(people(), people(person()))]) == 0
    assert share_found(people(person()), people()) is None
    assert share_found(people(person()), people(person())) == 1

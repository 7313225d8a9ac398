"""ViTPose: small random models in the library's own files, against the library called directly."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    VitPoseImageProcessor,
)

from annotators import ANNOTATORS, MissingWeights
from annotators.pose_coco import body_of_coco
from tests.conftest import draw_photo


def save_pose(folder, experts=1, labels=17):
    torch.manual_seed(0)
    backbone = VitPoseBackboneConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_experts=experts,
        part_features=8,
        out_indices=[2],
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=labels))
    torch.nn.init.normal_(model.head.conv.weight, std=0.2)
    model.save_pretrained(folder)
    VitPoseImageProcessor().save_pretrained(folder)
    return folder


def save_detector(folder, names=("cat", "person", "kite")):
    """An RT-DETR that finds much in whatever it is shown, most of it people."""
    torch.manual_seed(1)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        decoder_layers=1,
        encoder_layers=1,
        num_queries=6,
        num_denoising=0,
        id2label=dict(enumerate(names)),
    )
    model = RTDetrForObjectDetection(config)
    for weight in model.parameters():  # as they are made, they hardly look at the picture
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)
    with torch.no_grad():
        for head in model.model.decoder.class_embed:
            head.bias.copy_(torch.tensor([-4.0, 1.2, -4.0][: len(names)]))
    model.save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pose(tmp_path_factory):
    return save_pose(tmp_path_factory.mktemp("vitpose"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("rtdetr"))


def vitpose(pose, detector, **options):
    return ANNOTATORS.create("pose", "vitpose", weights=str(pose), detector=str(detector), device="cpu", **options)


def by_the_library(pose, detector, image, person_score):
    """COCO's points (n, 17, 3) of everybody, as the library's documentation has it."""
    finder, finder_processor = (
        RTDetrForObjectDetection.from_pretrained(detector),
        AutoImageProcessor.from_pretrained(detector),
    )
    model, processor = VitPoseForPoseEstimation.from_pretrained(pose), AutoImageProcessor.from_pretrained(pose)
    with torch.no_grad():
        outputs = finder(**finder_processor(images=image, return_tensors="pt"))
    size = torch.tensor([image.shape[:2]])
    (found,) = finder_processor.post_process_object_detection(outputs, target_sizes=size, threshold=person_score)
    boxes = found["boxes"][found["labels"] == 1].numpy()
    boxes[:, 2:] -= boxes[:, :2]
    with torch.no_grad():
        outputs = model(**processor(image, boxes=[boxes], return_tensors="pt"))
    people = processor.post_process_pose_estimation(outputs, boxes=[boxes])[0]
    return np.array([np.column_stack([person["keypoints"], person["scores"]]) for person in people])


@pytest.mark.parametrize("size", [(96, 64), (41, 70)])
def test_it_is_what_the_library_finds(pose, detector, size):
    image = draw_photo(3, *size)
    expected = by_the_library(pose, detector, image, 0.5)
    people = vitpose(pose, detector, person_score=0.5, min_confidence=1e-6).keypoints(image)
    assert len(expected) > 1
    assert len(people.persons) == len(expected)
    assert (people.width, people.height) == size
    for person, points in zip(people.persons, expected, strict=True):
        sure = points * (points[:, 2:] > 1e-6)
        np.testing.assert_allclose(person.body, body_of_coco(sure), atol=0.02)
        assert person.parts().keys() == {"body"}


def test_surer_people_are_fewer(pose, detector, photo):
    counts = [len(vitpose(pose, detector, person_score=score).find([photo])[0].persons) for score in (0.2, 0.55, 0.999)]
    assert counts[0] > counts[1] > counts[2] == 0


def test_several_pictures_are_looked_at_together_and_none_changes_another(pose, detector):
    images = [draw_photo(1), draw_photo(2), draw_photo(3, 41, 70), draw_photo(4)]
    annotator = vitpose(pose, detector)
    asked = []
    hook = annotator.network.pose.register_forward_hook(
        lambda module, inputs, output: asked.append(len(output.heatmaps))
    )
    together = annotator.keypoints_of(images)
    hook.remove()
    assert sum(asked) == sum(len(people.persons) for people in annotator.find(images))
    assert len(asked) == -(-sum(asked) // 32)
    for image, people in zip(images, together, strict=True):
        alone = annotator.keypoints(image)
        assert len(alone.persons) == len(people.persons)
        for one, other in zip(alone.persons, people.persons, strict=True):
            np.testing.assert_allclose(one.body, other.body, atol=0.01)


def test_an_expert_of_vitpose_plus_is_that_of_coco(detector, tmp_path, photo):
    """Its network wants to be told the data set; the first is COCO."""
    plus = save_pose(tmp_path, experts=3)
    annotator = vitpose(plus, detector)
    asked = []
    hook = annotator.network.pose.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["dataset_index"]), with_kwargs=True
    )
    annotator.find([photo])
    hook.remove()
    assert not torch.cat(asked).any()


def test_a_detector_that_knows_no_person_is_refused(pose, tmp_path, photo):
    other = save_detector(tmp_path, ("cat", "dog"))
    with pytest.raises(ValueError, match='a detector that knows no "person"; choose one trained on COCO'):
        vitpose(pose, other)(photo)


def test_a_network_of_other_points_is_refused(detector, tmp_path, photo):
    with pytest.raises(ValueError, match="gives 13 points, expected COCO's 17"):
        vitpose(save_pose(tmp_path, labels=13), detector)(photo)


def test_missing_weights_are_named_with_the_parameter_that_takes_them(pose, tmp_path):
    missing = ANNOTATORS.create("pose", "vitpose", weights=str(pose), offline=True)
    with pytest.raises(
        MissingWeights, match=r"PekingU/rtdetr_r50vd_coco_o365.*`controlkit fetch pose=vitpose`"
    ) as reason:
        missing.weight_files()
    assert str(reason.value).endswith("name its folder as detector")
    with pytest.raises(MissingWeights, match="detector='nowhere'"):
        ANNOTATORS.create("pose", "vitpose", weights=str(pose), detector="nowhere").weight_files()
    with pytest.raises(MissingWeights, match=r"usyd-community/vitpose-base-simple.*name its folder as weights"):
        ANNOTATORS.create("pose", "vitpose", offline=True).weight_files()


def test_both_networks_weights_decide_the_map(pose, detector, tmp_path):
    other = save_detector(tmp_path / "other", ("person", "cat", "kite"))
    with torch.no_grad():
        model = RTDetrForObjectDetection.from_pretrained(other)
        model.model.decoder.class_embed[0].bias.add_(1)
        model.save_pretrained(other)
    one, two = vitpose(pose, detector).libraries(), vitpose(pose, other).libraries()
    assert one["weights"] != two["weights"]
    assert one["transformers"]

"""ViTPose of transformers, on the people that one of its detectors finds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from annotators.hub_models import load_model, model_weights
from annotators.keypoints import People, Person
from annotators.pose import PoseAnnotator
from annotators.pose_coco import body_of_coco
from annotators.registry import ANNOTATORS
from annotators.weights import MissingWeights, Weights, locate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image

    Boxes = NDArray[np.float32]

_POSE = model_weights("usyd-community/vitpose-base-simple", "model.safetensors", 343.0, "Apache-2.0")
_DETECTOR = model_weights("PekingU/rtdetr_r50vd_coco_o365", "model.safetensors", 171.7, "Apache-2.0")

_NAME = "pose=vitpose"
_JOINTS = 17  # COCO's
_AT_ONCE = 32  # people that go through the network together


class _Networks(NamedTuple):
    detector: Any
    pose: Any


@ANNOTATORS.register("pose", backend="vitpose")
@dataclass(frozen=True)
class VitPose(PoseAnnotator):
    """Bodies of everybody by ViTPose; no hands, no face.

    detector      the folder or hub id of an object detector that knows persons, in place of RT-DETR
    person_score  the least of a person that is looked at
    """

    detector: str | None = None
    person_score: float = 0.3

    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "scipy", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (_POSE, _DETECTOR)
    runs_with: ClassVar[frozenset[str]] = PoseAnnotator.runs_with | {"detector"}

    def weight_files(self) -> tuple[Path, ...]:
        return (*self._pose_files(), *self._detector_files())

    def load(self) -> _Networks:
        pose_files, detector_files = self._pose_files(), self._detector_files()
        pose = _with_processor("VitPoseForPoseEstimation", pose_files, self.torch_device())
        if pose.config.num_labels != _JOINTS:
            raise ValueError(f"{pose_files[0]}: gives {pose.config.num_labels} points, expected COCO's {_JOINTS}")
        detector = _with_processor("AutoModelForObjectDetection", detector_files, self.torch_device())
        if "person" not in detector.config.id2label.values():
            raise ValueError(f'{detector_files[0]}: a detector that knows no "person"; choose one trained on COCO')
        return _Networks(detector, pose)

    def find(self, images: Sequence[Image]) -> list[People]:
        boxes = self._boxes(images)
        whose = [(picture, box) for picture, found in enumerate(boxes) for box in found]
        persons: dict[int, list[Person]] = defaultdict(list)
        for start in range(0, len(whose), _AT_ONCE):
            some = whose[start : start + _AT_ONCE]
            for (picture, _), person in zip(some, self._persons(images, some), strict=True):
                persons[picture].append(person)
        return [People(image.shape[1], image.shape[0], tuple(persons[picture])) for picture, image in enumerate(images)]

    def _boxes(self, images: Sequence[Image]) -> list[Boxes]:
        """Left, top, width, height of everybody in each picture; those of one size together, which are not padded."""
        import torch

        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            together[image.shape].append(number)
        detector, boxes = self.network.detector, {}
        for (height, width, _), numbers in together.items():
            inputs = _inputs(detector, [images[number] for number in numbers])
            with torch.inference_mode():
                outputs = detector(**inputs)
            sizes = [(height, width)] * len(numbers)
            found = detector.processor.post_process_object_detection(
                outputs, threshold=self.person_score, target_sizes=sizes
            )
            for number, objects in zip(numbers, found, strict=True):
                labels = [detector.config.id2label[label] for label in objects["labels"].tolist()]
                corners = objects["boxes"][[label == "person" for label in labels]].float().cpu().numpy()
                corners[:, 2:] -= corners[:, :2]
                boxes[number] = corners[(corners[:, 2:] > 0).all(axis=1)]
        return [boxes[number] for number in range(len(images))]

    def _persons(self, images: Sequence[Image], whose: Sequence[tuple[int, Boxes]]) -> list[Person]:
        """One person in each of these boxes of the pictures of these numbers."""
        import numpy as np
        import torch

        network, boxes = self.network.pose, [[box.tolist()] for _, box in whose]
        inputs = _inputs(network, [images[picture] for picture, _ in whose], boxes=boxes)
        if getattr(network.config.backbone_config, "num_experts", 1) > 1:  # of ViTPose++; the first knows COCO
            inputs["dataset_index"] = torch.zeros(len(whose), dtype=torch.long, device=network.device)
        with torch.inference_mode():
            outputs = network(**inputs)
        found = network.processor.post_process_pose_estimation(outputs, boxes=boxes)
        points = [np.column_stack([one["keypoints"], one["scores"]]).astype(np.float64) for (one,) in found]
        return [Person(body_of_coco(each * (each[:, 2:] > 0))) for each in points]

    def _pose_files(self) -> tuple[Path, ...]:
        return locate(_POSE, self.weights, offline=self.offline, fetch=_NAME, who=_NAME)

    def _detector_files(self) -> tuple[Path, ...]:
        try:
            return locate(_DETECTOR, self.detector, offline=self.offline, fetch=_NAME, who=_NAME)
        except MissingWeights as reason:  # which speaks of the parameter `weights`
            said = str(reason).replace("weights=", "detector=").replace("folder as weights", "folder as detector")
            raise MissingWeights(said) from None


def _with_processor(auto_class: str, files: tuple[Path, ...], device: str) -> Any:
    """The model of a folder, with the library's own way of preparing its input and reading its output."""
    from transformers import AutoImageProcessor

    model = load_model(auto_class, files, device)
    model.processor = AutoImageProcessor.from_pretrained(files[0].parent, local_files_only=True)
    return model


def _inputs(network: Any, images: Sequence[Image], **more: Any) -> Any:
    import numpy as np

    pictures = [np.ascontiguousarray(image) for image in images]
    prepared = network.processor(images=pictures, input_data_format="channels_last", return_tensors="pt", **more)
    return prepared.to(network.device)

"""Where OpenPose looks for hands and faces, given a body, and the points in what its networks answer there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image
    from annotators.keypoints import Points

    Raster = NDArray[np.float32]

_SMALLEST = 20  # pixels; of a smaller hand or face there is nothing to see
_SEEN = 0.05  # OpenPose's threshold for both


class Square(NamedTuple):
    """A square of the picture, in whole pixels; it may stand out of it."""

    x: int
    y: int
    side: int

    def cut_from(self, image: Image, size: int) -> Image:
        """What it shows of the picture, at size x size; beyond the picture, the grey that is 0 to the networks."""
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        right, bottom = self.x + self.side, self.y + self.side
        inside = image[max(0, self.y) : max(0, bottom), max(0, self.x) : max(0, right)]
        border = (max(0, -self.y), max(0, bottom - height), max(0, -self.x), max(0, right - width))
        whole = cv2.copyMakeBorder(inside, *border, cv2.BORDER_CONSTANT, value=(128, 128, 128))
        how = cv2.INTER_AREA if self.side > size else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(whole, (size, size), interpolation=how), dtype=np.uint8)

    def placed(self, points: Points, size: int) -> Points:
        """Points (n, 3) of a raster of size x size over the square, in pixels of the picture."""
        import numpy as np

        scale = self.side / size
        places = (points[:, :2] + 0.5) * scale - 0.5 + [self.x, self.y]
        return np.column_stack([places, points[:, 2]]) * (points[:, 2:] > 0)


def hand_squares(body: Points) -> tuple[Square | None, Square | None]:
    """Around the left and the right hand: a third of the forearm beyond the wrist, as wide as one and a half forearms
    (OpenPose's handDetector)."""
    import numpy as np

    squares: list[Square | None] = []
    for shoulder, elbow, wrist in (body[[5, 6, 7]], body[[2, 3, 4]]):
        square = None
        if min(shoulder[2], elbow[2], wrist[2]) > 0:
            middle = wrist[:2] + 0.33 * (wrist[:2] - elbow[:2])
            forearm = float(np.linalg.norm(wrist[:2] - elbow[:2]))
            upper_arm = float(np.linalg.norm(elbow[:2] - shoulder[:2]))
            square = _square_around(middle, 1.5 * max(forearm, 0.9 * upper_arm))
        squares.append(square)
    return squares[0], squares[1]


def face_square(body: Points) -> Square | None:
    """Around the nose, six times as wide as the farther eye is from it, or three times as the farther ear."""
    nose, eyes, ears = body[0], body[[14, 15]], body[[16, 17]]
    if nose[2] == 0:
        return None
    reaches = [
        factor * max(abs(point[0] - nose[0]), abs(point[1] - nose[1]))
        for points, factor in ((eyes, 3.0), (ears, 1.5))
        for point in points
        if point[2] > 0
    ]
    return _square_around(nose[:2], 2 * max(reaches)) if reaches else None


def hand_points(heat: Raster) -> Points:
    """Points (21, 3) of a hand in heat (h, w, 21): each in the region that holds most of its kind's heat."""
    import cv2
    import numpy as np

    points = np.zeros((heat.shape[2], 3))
    for kind in range(heat.shape[2]):
        of_kind = np.ascontiguousarray(heat[:, :, kind])
        smooth = cv2.GaussianBlur(of_kind, (0, 0), 3.0)
        count, regions = cv2.connectedComponents((smooth > _SEEN).astype(np.uint8), connectivity=8)
        if count > 1:
            heat_of_region = np.bincount(regions.reshape(-1), of_kind.reshape(-1), count)
            within = np.where(regions == 1 + heat_of_region[1:].argmax(), of_kind, -np.inf)
            points[kind] = _highest(within)
    return points


def face_points(heat: Raster) -> Points:
    """Points (70, 3) of a face in heat (h, w, 70): each where its kind is highest."""
    import numpy as np

    points = np.array([_highest(heat[:, :, kind]) for kind in range(heat.shape[2])])
    return points * (points[:, 2:] > _SEEN)


def _highest(heat: Raster) -> tuple[int, int, float]:
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    return column, row, float(heat[row, column])


def _square_around(middle: Points, side: float) -> Square | None:
    if side < _SMALLEST:
        return None
    x, y = (round(float(place) + 0.5 - side / 2) for place in middle)
    return Square(x, y, round(side))

import torch

from d2det.models.dense_regression import cell_centres
from d2det.models.targets import inside_picture, overlap_cells


def test_a_perfect_box_has_its_inner_five_by_five_cells_on_the_object() -> None:
    boxes = torch.tensor([[10.0, 20, 81, 62]])
    expected = torch.zeros(1, 7, 7, dtype=torch.bool)
    expected[:, 1:-1, 1:-1] = True
    assert torch.equal(overlap_cells(boxes, boxes), expected)


def test_cells_are_measured_from_every_side_of_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(60, 2, generator=generator) * 50
    boxes = torch.cat((low, low + 8 + torch.rand(60, 2, generator=generator) * 60), 1)
    gts = boxes + torch.randn(60, 4, generator=generator) * 8
    got = overlap_cells(boxes, gts)
    x, y = cell_centres(boxes)
    for r, (box, gt) in enumerate(zip(boxes.tolist(), gts.tolist(), strict=True)):
        width, height = box[2] - box[0] - 1, box[3] - box[1] - 1
        for i in range(7):
            for j in range(7):
                cx, cy = float(x[r, 0, j]), float(y[r, i, 0])
                in_x = cx - gt[0] >= width / 6 and gt[2] - 1 - cx >= width / 6
                in_y = cy - gt[1] >= height / 6 and gt[3] - 1 - cy >= height / 6
                assert bool(got[r, i, j]) == (in_x and in_y)


def test_boxes_apart_share_no_cell() -> None:
    boxes = torch.tensor([[0.0, 0, 20, 20], [50, 50, 60, 60]])
    assert not overlap_cells(boxes, boxes + 100).any()


def test_only_anchors_wholly_in_the_picture_train() -> None:
    anchors = torch.tensor([[0.0, 0, 60, 40], [-1, 0, 5, 5], [0, 0, 61, 40], [5, 5, 20, 41]])
    inside = inside_picture(anchors, torch.tensor([[40, 60], [41, 61]]))
    assert inside.tolist() == [[True, False, False, False], [True, False, True, True]]

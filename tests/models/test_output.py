"""Shapes of images and the padding that makes them divide."""

import pytest

from models.output import ImageShape, fitting_pad


@pytest.mark.parametrize(
    ("height", "width", "pad", "remedy"),
    [
        (30, 30, 2, "set pad to 1"),
        (28, 28, 1, "set pad to 0"),
        (29, 28, None, "no equal pad on all sides fits, so crop or resize the images"),
        (29, 29, 2, "no equal pad on all sides fits, so crop or resize the images"),
        (28, 30, None, "no equal pad on all sides fits, so crop or resize the images"),
    ],
)
def test_sides_that_do_not_divide_are_answered_with_what_helps(height, width, pad, remedy):
    with pytest.raises(ValueError, match=f"divide by 4, such as .*; {remedy}$"):
        fitting_pad(ImageShape(1, height, width), 4, pad)


def test_the_least_pad_is_found():
    assert [fitting_pad(ImageShape(1, side, side), 8, None) for side in (28, 30, 32)] == [2, 1, 0]

"""Maps of classes that are held compressed."""

import numpy as np
import pytest

from optin_cli.errors import DataError
from optin_cli.evaluation.class_maps import ClassMap, agreement


def test_maps_come_back_as_they_were():
    classes = np.arange(12).reshape(3, 4) * 5000
    held = ClassMap.of(classes)
    assert held.shape == (3, 4)
    np.testing.assert_array_equal(held.classes(), classes)


def test_regions_take_little_memory():
    classes = np.repeat(np.arange(10), 20_000).reshape(400, 500)
    assert len(ClassMap.of(classes).content) < 5_000


def test_agreement_is_the_share_of_all_pixels():
    small, large = np.zeros((1, 2)), np.zeros((2, 4))
    other = large.copy()
    other[0] = 1
    assert agreement([ClassMap.of(small), ClassMap.of(large)], [ClassMap.of(small), ClassMap.of(other)]) == 0.6
    with pytest.raises(DataError, match=r"differ in size: \(1, 2\) and \(2, 4\)"):
        agreement([ClassMap.of(small)], [ClassMap.of(large)])

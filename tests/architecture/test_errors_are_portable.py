"""Errors cross process borders: a worker's child pickles them, pytest and loggers copy them."""

from __future__ import annotations

import copy
import pickle

import pytest

from cloudseg import errors
from cloudseg.errors import CloudsegError, SpecError, StorageError


def subclasses(cls: type[CloudsegError]) -> list[type[CloudsegError]]:
    return [cls, *(deeper for child in cls.__subclasses__() for deeper in subclasses(child))]


# Only the tree of errors.py: a test module elsewhere may derive its own.
CLASSES = [cls for cls in subclasses(CloudsegError) if cls.__module__ == errors.__name__]


def test_the_tree_is_not_empty():
    assert len(CLASSES) >= 15


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids="pcd"
)
def test_an_error_survives_the_journey(cls, clone):
    error = cls("the box 0,0,0:1,1,1 does not fit; make it larger")
    error.add_note("while reading a chunk")
    twin = clone(error)
    assert type(twin) is cls
    assert str(twin) == str(error)
    assert twin.args == error.args


@pytest.mark.parametrize(
    "error",
    [
        errors.BoxOutOfBoundsError.of("0,0,0:9,9,9", "0,0,0:8,8,8", uri="memory://a"),
        errors.AlignmentError.of("1,0,0:9,9,9", grid=(8, 8, 8), origin=(0, 0, 0), uri="memory://a"),
        errors.MissingExtraError.of("torch", extra="tasks"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_message_built_by_a_class_method_survives_too(error):
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_class_says_who_must_act():
    for cls in CLASSES:
        assert not (issubclass(cls, SpecError) and issubclass(cls, StorageError)), cls


def test_the_drawing_at_the_top_names_every_class_with_its_builtin_parent():
    drawing = errors.__doc__ or ""
    for cls in CLASSES:
        assert f" {cls.__name__}" in drawing, (
            f"{cls.__name__} is missing from the tree at the top of errors.py"
        )
        builtin = [
            base.__name__ for base in cls.__bases__ if base.__module__ == "builtins" and base is not Exception
        ]
        for name in builtin:
            assert f"{cls.__name__} ({name})" in drawing

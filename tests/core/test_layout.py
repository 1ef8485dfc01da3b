"""Layouts: which are refused, what their one encoding is, and how two of them differ."""

import hashlib

import pytest

from secagg.canonical import Reader, Writer
from secagg.errors import ConfigError, MalformedMessage
from secagg.layout import Layout, TensorSpec, explain_difference

TWO = Layout((TensorSpec("down", (4, 2)), TensorSpec("up", (2, 3), "float16")))


def test_sizes_are_products_and_their_sum() -> None:
    assert [spec.size for spec in TWO.tensors] == [8, 6]
    assert TWO.size == 14
    assert TensorSpec("scalar", ()).size == 1
    assert Layout.flat(9) == Layout((TensorSpec("vector", (9,)),))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "cause"),
    [
        ("", (1,), "float32", "empty name"),
        ("a", (1,), "int8", "none of"),
        ("a", (1,), "float128", "none of"),
        ("a", (0,), "float32", "positive sides"),
        ("a", (2, -1), "float32", "positive sides"),
        ("a", (1 << 40,), "float32", "positive sides"),
        ("a", (1,) * 9, "float32", "at most 8"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(
    name: str, shape: tuple[int, ...], dtype: str, cause: str
) -> None:
    with pytest.raises(ConfigError, match=cause):
        TensorSpec(name, shape, dtype)


def test_the_largest_tensors_are_accepted() -> None:
    assert TensorSpec("a", ((1 << 40) - 1,)).size == (1 << 40) - 1
    assert TensorSpec("a", (1,) * 8).size == 1


def test_a_layout_has_a_tensor() -> None:
    with pytest.raises(ConfigError, match="0 tensors"):
        Layout(())


def test_a_layout_has_no_more_tensors_than_its_limit() -> None:
    many = tuple(TensorSpec(str(number), (1,)) for number in range((1 << 16) + 1))
    assert Layout(many[:-1]).size == 1 << 16
    with pytest.raises(ConfigError, match="65537 tensors"):
        Layout(many)


def test_a_name_stands_once() -> None:
    with pytest.raises(ConfigError, match="'a' stands twice"):
        Layout((TensorSpec("a", (1,)), TensorSpec("b", (1,)), TensorSpec("a", (2,))))


def test_the_encoding_reads_back_and_its_hash_is_the_digest() -> None:
    writer = Writer()
    TWO.write(writer)
    data = writer.finish()
    assert Layout.read(Reader(data, "layout")) == TWO
    assert TWO.digest == hashlib.sha256(data).digest()


def test_an_encoding_with_too_many_tensors_or_sides_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="count of 65537"):
        Layout.read(Reader(Writer().tag("layout").u32((1 << 16) + 1).finish(), "layout"))
    deep = Writer().tag("layout").u32(1).text("a").text("float32").u32(9)
    with pytest.raises(MalformedMessage, match="count of 9"):
        Layout.read(Reader(deep.finish(), "layout"))


@pytest.mark.parametrize("other", ["name", "dtype", "shape", "order"])
def test_every_difference_shows_in_the_digest(other: str) -> None:
    one, two = TWO.tensors
    changed = {
        "name": (TensorSpec("Down", one.shape), two),
        "dtype": (TensorSpec(one.name, one.shape, "float64"), two),
        "shape": (TensorSpec(one.name, (2, 4)), two),
        "order": (two, one),
    }[other]
    assert Layout(changed).digest != TWO.digest


def test_a_difference_is_explained_by_tensor() -> None:
    theirs = Layout((TensorSpec("down", (2, 4)), TensorSpec("gate", (1,), "float16")))
    assert explain_difference(TWO, theirs) == (
        "missing ['up']; unexpected ['gate']; down: (4, 2) float32 here, (2, 4) float32 there"
    )
    assert explain_difference(theirs, TWO).startswith("missing ['gate']; unexpected ['up'];")
    assert " in the round, " in explain_difference(TWO, theirs, ("in the round", "given"))
    swapped = Layout(TWO.tensors[::-1])
    assert explain_difference(TWO, swapped) == "the same tensors in another order"


def test_an_explanation_names_five_tensors_of_a_kind() -> None:
    many = Layout(tuple(TensorSpec(f"a{number}", (1,)) for number in range(8)))
    wide = Layout(tuple(TensorSpec(f"a{number}", (2,)) for number in range(8)))
    other = Layout(tuple(TensorSpec(f"b{number}", (1,)) for number in range(8)))
    assert explain_difference(many, wide).count(" here") == 5
    assert explain_difference(many, other) == (
        "missing ['a0', 'a1', 'a2', 'a3', 'a4']; unexpected ['b0', 'b1', 'b2', 'b3', 'b4']"
    )
    named = [part.partition(":")[0] for part in explain_difference(many, wide).split("; ")]
    assert named == ["a0", "a1", "a2", "a3", "a4"]

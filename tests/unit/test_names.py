"""No public type name means two things."""

from pathlib import Path

import pytest

from lab import names


def folder_of(root: Path, **modules: str) -> Path:
    root.mkdir()
    for name, text in modules.items():
        (root / f"{name}.py").write_text(text)
    return root


def test_every_type_has_a_name_of_its_own() -> None:
    assert names.collisions() == {}


def test_the_product_and_the_control_plane_are_read() -> None:
    assert all(list(source.rglob("*.py")) for source in names.SOURCES)
    assert [source.name for source in names.SOURCES] == ["byoc_agents", "byoc_control_plane"]


@pytest.mark.parametrize(
    "definition",
    [
        "class Reading:\n    pass\n",
        "Reading = tuple[int, int]\n",
        "Reading = dict[str, float] | None\n",
        "Reading = collections.abc.Callable[[], None]\n",
        "Reading: TypeAlias = str\n",
        'Reading = NewType("Reading", int)\n',
    ],
)
def test_a_collision_is_found_however_a_type_is_defined(tmp_path: Path, definition: str) -> None:
    folder = folder_of(tmp_path / "p", a=definition, b="class Reading:\n    pass\n")
    assert names.collisions(folder) == {"Reading": ["p.a.Reading", "p.b.Reading"]}


def test_a_collision_between_two_distributions_is_found(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "first", a="Row = dict[str, int]\n")
    second = folder_of(tmp_path / "second", a="class Row:\n    pass\n")
    assert names.collisions(first, second) == {"Row": ["first.a.Row", "second.a.Row"]}


def test_constants_functions_and_private_pairs_are_not_types(tmp_path: Path) -> None:
    text = "LIMIT = 1\nT = TypeVar('T')\n_decode = f()\n_Waiting = tuple[int]\n"
    assert names.collisions(folder_of(tmp_path / "p", a=text, b=text)) == {}

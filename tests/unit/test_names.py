"""No public type name means two things."""

from pathlib import Path

from lab import names


def test_every_type_has_a_name_of_its_own() -> None:
    assert names.collisions() == {}


def test_a_collision_would_be_found(tmp_path: Path) -> None:
    for module in ("a", "b"):
        (tmp_path / f"{module}.py").write_text("class Reading:\n    pass\n")
    assert names.collisions(tmp_path) == {"Reading": ["a.Reading", "b.Reading"]}

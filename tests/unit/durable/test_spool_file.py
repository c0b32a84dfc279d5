"""The spool file's steps after a failure: one test per row of its table of transitions."""

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from byoc_agents.durable.files import DirectoryLock
from byoc_agents.durable.spool_file import (
    TRANSITIONS,
    Failure,
    Operation,
    OperationKind,
    SpoolFile,
    Step,
)
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolError,
    SpoolNewerError,
    SpoolUnavailableError,
)
from lab.fakes.core import FakeClock

Script = list[Exception | Callable[[], Exception]]
DAMAGED, DISK, NEWER = (
    SpoolCorruptError("damaged"),
    SpoolUnavailableError("disk"),
    SpoolNewerError("newer"),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def file(directory: Path) -> Iterator[SpoolFile]:
    lock = DirectoryLock(directory)
    lock.hold()
    file = SpoolFile(directory, lock, max_bytes=1 << 20, clock=FakeClock())
    yield file
    file.close()
    lock.release()


class Work:
    """Fails as the script says, then succeeds."""

    def __init__(self, *script: Exception | Callable[[], Exception]) -> None:
        self.script = list(script)
        self.runs = 0

    def __call__(self, _: SpoolStore) -> str:
        self.runs += 1
        if self.script:
            failure = self.script.pop(0)
            raise failure if isinstance(failure, Exception) else failure()
        return "done"

    def operation(self, kind: OperationKind) -> Operation:
        return Operation(self, kind)


def test_each_failure_has_a_next_step() -> None:
    assert TRANSITIONS.keys() == set(product([Step.RUN, Step.CONFIRM], Failure))


@pytest.mark.parametrize(
    ("script", "answer", "runs_and_corruptions"),
    [
        ([DAMAGED], "done", (2, 0)),  # it was not real
        ([DAMAGED, DAMAGED], SpoolCorruptError, (2, 1)),
        ([DISK], SpoolUnavailableError, (1, 0)),
        ([DAMAGED, DISK], SpoolUnavailableError, (2, 0)),
        ([NEWER], SpoolNewerError, (1, 0)),
        ([DAMAGED, NEWER], SpoolNewerError, (2, 0)),
    ],
)
def test_one_operation_that_grows(
    file: SpoolFile,
    script: Script,
    answer: object,
    runs_and_corruptions: tuple[int, int],
) -> None:
    work = Work(*script)
    (found,), _ = file.serve([work.operation(OperationKind.GROW)])
    assert found == answer or type(found) is answer
    assert (work.runs, file.corruptions) == runs_and_corruptions
    refused = answer is SpoolUnavailableError
    assert isinstance(file.write_error, SpoolError) is refused


@pytest.mark.parametrize("script", [[], [DAMAGED]], ids=["run", "confirm"])
def test_a_removed_file_is_replaced_and_its_rows_are_kept(
    file: SpoolFile, directory: Path, script: Script
) -> None:
    def remove() -> Exception:
        (directory / "spool.db").unlink()
        return DAMAGED

    file.serve([Work().operation(OperationKind.GROW)])
    work = Work(*script, remove)
    (found,), _ = file.serve([work.operation(OperationKind.GROW)])
    assert isinstance(found, SpoolCorruptError)
    assert (work.runs, file.corruptions) == (len(script) + 1, 1)


@pytest.mark.parametrize("script", [[], [DAMAGED]], ids=["run", "confirm"])
def test_a_file_that_the_disk_cannot_read_is_not_replaced(
    file: SpoolFile, directory: Path, script: Script
) -> None:
    def make_unreadable() -> Exception:
        file.close()  # as if the disk failed before the file is read again
        (directory / "spool.db").rename(directory / "away")
        (directory / "spool.db").mkdir()
        return DAMAGED

    (found,), _ = file.serve([Work(*script, make_unreadable).operation(OperationKind.SHRINK)])
    assert isinstance(found, SpoolUnavailableError)
    assert "cannot be read" in str(found)
    assert file.corruptions == 0


@pytest.mark.parametrize("script", [[DISK], [DAMAGED, DISK]], ids=["run", "confirm"])
def test_an_acknowledgment_may_use_the_reserve(
    file: SpoolFile, directory: Path, script: Script
) -> None:
    file.serve([Work().operation(OperationKind.GROW)])
    assert (directory / "reserve").exists()
    work = Work(*script)
    assert file.serve([work.operation(OperationKind.SHRINK)])[0] == ["done"]
    assert not (directory / "reserve").exists()


@pytest.mark.parametrize("script", [[DISK], [DAMAGED, DISK]], ids=["run", "confirm"])
def test_after_a_failure_of_the_disk_each_operation_runs_alone(
    file: SpoolFile, script: Script
) -> None:
    fails, succeeds = Work(*script, DISK), Work()
    group = [work.operation(OperationKind.GROW) for work in (fails, succeeds)]
    (first, second), _ = file.serve(group)
    assert isinstance(first, SpoolUnavailableError)
    assert second == "done"

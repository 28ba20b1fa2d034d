"""How a job ends that meets a full disk, or a storage that it cannot reach."""

import errno
import warnings

import pytest
from botocore.exceptions import NoCredentialsError

from uadray import cli
from uadray.errors import UadrayWarning


class Wrapped(Exception):
    """As Ray does it: the error of a task as `cause`, those of workers by rank."""

    def __init__(self, cause: BaseException | None = None, failures: dict | None = None) -> None:
        super().__init__("wrapped")
        self.cause, self.worker_failures = cause, failures


FULL = OSError(errno.ENOSPC, "No space left on device", "runs/here/model.safetensors")


def chained(error: BaseException) -> BaseException:
    try:
        try:
            raise error
        except BaseException as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        Wrapped(FULL),
        Wrapped(failures={1: Wrapped(FULL)}),
        chained(FULL),
        chained(Wrapped(FULL)),
    ],
)
def test_a_full_disk_is_said_in_words(error, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == cli.FAILED
    message = capsys.readouterr().err
    assert message.startswith("error: runs/here/model.safetensors: no space is left")
    assert "run the same command again" in message


def test_the_advice_of_ray_is_no_name_of_a_file(capsys):
    advice = "Failed to apply UDF transform after 1/1 attempts.\nTo change retry attempts, ..."

    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", advice)

    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err.startswith("error: no space is left on the device; free some")


def test_a_storage_that_cannot_be_reached_is_said_in_words(capsys):
    for error in (NoCredentialsError(), Wrapped(NoCredentialsError())):

        def main(error: Exception = error) -> None:
            raise error

        with pytest.raises(SystemExit) as ended:
            cli.run(main)
        assert ended.value.code == cli.FAILED
        message = capsys.readouterr().err
        assert message.startswith("error: the storage cannot be reached (NoCredentialsError: ")
        assert "AWS_ACCESS_KEY_ID" in message


def test_any_other_error_keeps_its_traceback():
    for error in (OSError(errno.EIO, "io"), Wrapped(ValueError("no"))):

        def main(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)):
            cli.run(main)


def test_warnings_of_ours_are_messages(capsys, monkeypatch):
    others = []

    def usual(*warning: object) -> None:
        others.append(warning[:2])

    def main() -> None:
        for category in (UadrayWarning, UserWarning):
            warnings.showwarning("the page is empty", category, "page.py", 7)

    monkeypatch.setattr(warnings, "showwarning", usual)
    with pytest.raises(SystemExit):
        cli.run(main)
    assert capsys.readouterr().err == "warning: the page is empty\n"
    assert others == [("the page is empty", UserWarning)]
    assert warnings.showwarning is usual


def test_errors_that_know_each_other_come_to_an_end():
    one, two = Wrapped(), Wrapped()
    one.cause, two.cause = two, one
    with pytest.raises(Wrapped):
        cli.run(lambda: (_ for _ in ()).throw(one))

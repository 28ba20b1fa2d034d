"""The command `uadray`, for what needs no checkout of the repository: `uadray status PATH`."""

import sys

from uadray import cli

_HELP = """usage: uadray status PATH [--follow]

    status    how a run or a sweep stands; uadray status --help

All other verbs are the files in jobs/ of the repository, such as python jobs/train.py."""


def main() -> int:
    """Call the verb that is named first."""
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(_HELP)
        return cli.OK
    if not args or args[0] != "status":
        named = f"no verb is named {args[0]!r}" if args else "name a verb"
        print(f"error: {named}\n{_HELP}", file=sys.stderr)
        return 2
    from uadray.status import command

    del sys.argv[1]
    return command.main("uadray status")


def run() -> None:
    """The console's entry."""
    cli.run(main)


if __name__ == "__main__":
    run()

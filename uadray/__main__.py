"""The command `uadray`, for what needs no checkout of the repository."""

import sys

from uadray import cli

_HELP = """usage: uadray status PATH [--follow]
       uadray methods

    status    how a run or a sweep stands; uadray status --help
    methods   every method, the package that it is from, and its source

All other verbs are the files in jobs/ of the repository, such as python jobs/train.py."""


def main() -> int:
    """Call the verb that is named first."""
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        print(_HELP)
        return cli.OK
    if args == ["methods"]:
        return methods()
    if not args or args[0] != "status":
        named = f"no verb is named {' '.join(args)!r}" if args else "name a verb"
        print(f"error: {named}\n{_HELP}", file=sys.stderr)
        return 2
    from uadray.status import command

    del sys.argv[1]
    return command.main("uadray status")


def methods() -> int:
    """List every method; those of other packages that cannot be used are left out, with reasons."""
    from uadray.methods import NAMED

    broken: list[object] = []
    for name, one in NAMED.usable(lambda name, error: broken.append(error)).items():
        print(f"{name:24} {one.method.package or 'uadray'!s:24} {one.source}")
    return cli.say_left_out(broken)


def run() -> None:
    """The console's entry."""
    cli.run(main)


if __name__ == "__main__":
    run()

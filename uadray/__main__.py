"""The command `uadray`: every verb, wherever the package is installed."""

import sys

from uadray import __version__, cli
from uadray.fields import closest
from uadray.jobs import VERBS, about, start

METHODS = "methods"


def _help() -> str:
    lines = [f"  {verb:10} {about(verb)}" for verb in VERBS]
    lines.append(f"  {METHODS:10} Every method, the package that it is from, and its source.")
    head = "usage: uadray VERB [arguments]; uadray VERB --help says which"
    return "\n".join([head, "", *lines])


def run() -> None:
    """The console's entry: call the verb that is named first."""
    args = sys.argv[1:]
    if args and args[0] in VERBS:
        # As one word: usages, errors and records name it so.
        sys.argv[:2] = [f"{cli.COMMAND} {args[0]}"]
        start(args[0])
    cli.run(lambda: _other(args))


def _other(args: list[str]) -> int:
    if args == [METHODS]:
        return methods()
    if args == ["--version"]:
        print(f"{cli.COMMAND} {__version__}")
        return cli.OK
    if args and (args[0] in ("-h", "--help", "help") or args == [METHODS, "--help"]):
        print(_help())
        return cli.OK
    named = "name a verb"
    if args:
        named = f"no verb is named {' '.join(args)!r}{closest(args[0], [*VERBS, METHODS])}"
    print(f"error: {named}\n{_help()}", file=sys.stderr)
    return 2


def methods() -> int:
    """List every method; those of other packages that cannot be used are left out, with reasons."""
    from uadray.methods import NAMED

    broken: list[object] = []
    for name, one in NAMED.usable(lambda name, error: broken.append(error)).items():
        print(f"{name:24} {one.method.package or 'uadray'!s:24} {one.source}")
    return cli.say_left_out(broken)


if __name__ == "__main__":
    run()

"""What all jobs do around their one call: named errors without a traceback, and exit codes."""

import sys
from collections.abc import Callable
from typing import NoReturn

from uadray import files
from uadray.errors import UadrayError

OK, FAILED, INCOMPLETE = 0, 1, 3
"""Exit codes: all done; an error, which was printed; done, but some input could not be used."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call a job's main function and end the process with its exit code (None is 0).

    An error of ours is a message to the user and is printed as one; any other is a defect and
    keeps its traceback.
    """
    try:
        sys.exit(main() or OK)
    except UadrayError as error:
        print(f"error: {files.without_secrets(str(error))}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)

"""How a run or a sweep stands: `python jobs/status.py PATH --follow`, as `uadray status` does."""

from uadray import cli
from uadray.status.command import main

if __name__ == "__main__":
    cli.run(main)

"""`uadray tune` from a checkout of the repository; see `uadray/jobs/tune.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("tune")

"""`uadray ensemble` from a checkout of the repository; see `uadray/jobs/ensemble.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("ensemble")

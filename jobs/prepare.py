"""`uadray prepare` from a checkout of the repository; see `uadray/jobs/prepare.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("prepare")

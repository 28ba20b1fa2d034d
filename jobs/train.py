"""`uadray train` from a checkout of the repository; see `uadray/jobs/train.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("train")

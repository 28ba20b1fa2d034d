"""`uadray evaluate` from a checkout of the repository; see `uadray/jobs/evaluate.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("evaluate")

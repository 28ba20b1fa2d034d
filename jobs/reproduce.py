"""`uadray reproduce` from a checkout of the repository; see `uadray/jobs/reproduce.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("reproduce")

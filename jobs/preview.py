"""`uadray preview` from a checkout of the repository; see `uadray/jobs/preview.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("preview")

"""`uadray export` from a checkout of the repository; see `uadray/jobs/export.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("export")

"""`uadray report` from a checkout of the repository; see `uadray/jobs/report.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("report")

"""`uadray status` from a checkout of the repository; see `uadray/jobs/status.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("status")

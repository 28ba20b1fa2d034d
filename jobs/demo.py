"""`uadray demo` from a checkout of the repository; see `uadray/jobs/demo.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("demo")

"""`uadray predict` from a checkout of the repository; see `uadray/jobs/predict.py`."""

from uadray.jobs import start

if __name__ == "__main__":
    start("predict")

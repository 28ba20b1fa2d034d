"""Phantom brains and lesions: pure functions of (kind, seed, size, version)."""

from uadray.phantom.subject import VERSION, Kind, PhantomSubject, age_and_sex, make_subject

__all__ = ["VERSION", "Kind", "PhantomSubject", "age_and_sex", "make_subject"]

"""Phantom brains and lesions: pure functions of (kind, seed, size)."""

from uadray.phantom.subject import Kind, PhantomSubject, make_subject, scanner_profiles

__all__ = ["Kind", "PhantomSubject", "make_subject", "scanner_profiles"]

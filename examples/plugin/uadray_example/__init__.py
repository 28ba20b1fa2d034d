"""What a package of your own may add to uadray, a file each: so far a method, in `ae.py`."""

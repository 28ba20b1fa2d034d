"""What a package of your own may add to uadray, a file each: a method, a layout, figures."""

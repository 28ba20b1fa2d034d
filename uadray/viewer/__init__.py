"""Pages of single cases, to look at in three dimensions."""

"""How a run or a sweep stands, read from its folder alone, on any machine that sees it."""

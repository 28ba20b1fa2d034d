"""The charts of a sweep's page: parallel coordinates as Vega, all others as Vega-Lite.

Colours are the page's style variables, so that dark mode and paper need no second drawing. Trials
are referred to by number: the page's script sets the parameters `picked` and `passing` of every
chart when rows are selected or axes brushed. No text of a run stands in an expression.
"""

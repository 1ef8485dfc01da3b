"""Time series: a small patch forecaster, real and synthetic series, other forecasts beside it.

Start at `forecaster` (the model) and `stream` (what it is trained and measured on).
"""

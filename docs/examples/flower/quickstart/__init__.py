"""A Flower app whose updates leave every tenant under secure aggregation alone."""

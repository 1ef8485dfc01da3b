"""A Flower app whose training costs nothing, so that what is left is the aggregation."""

"""A Flower app whose training anybody can compute: what a round opens can be held against it."""

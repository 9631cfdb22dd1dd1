"""Making a broker read its files again when they change: what changed, which process it is, and the loop of the two."""

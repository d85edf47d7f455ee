"""The cache keeps in Redis the rows that readers ask for, in the shape that the configured projections give them.

It is complete up to the position in `cdc:meta`. This is the only package that imports redis.
"""

"""The cache's room, the only one that imports redis: projections, the script, the sink, the warm-up.

Changes come in, and Redis holds what readers ask for, shaped for them, complete up to the position in `cdc:meta`.
"""

"""The slot watch measures what every replication slot of the server retains, and forecasts when that becomes too much.

`meter`, `forecast`, `reason` and `slots` are pure: observations in, rates, forecasts and findings out. `monitor` looks
every few seconds beside the service. `report` turns a look into plain values and warnings.
"""

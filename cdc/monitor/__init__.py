"""The slot watch: what every replication slot of the server retains, why, and when that becomes too much.

`meter`, `forecast`, `reason` and `slots` are pure: observations in, rates, forecasts and findings out. `monitor` looks
every few seconds beside the service, and `report` is what it found, as plain values and as warnings.
"""

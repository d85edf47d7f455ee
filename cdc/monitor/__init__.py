"""The slot watch: what every replication slot of the server retains, why, and when that becomes too much.

`meter`, `forecast` and `words` are pure: observations in, rates, forecasts and sentences out. `monitor` looks every few
seconds beside the service, and `report` is what it found, as plain values and as warnings.
"""

"""What several suites share: servers, processes, builders of transactions, models. No tests."""

"""`make faults`: real processes, tormented round after round; nothing lost, doubled, reordered, or torn.

CDC_FAULTS_SECONDS   budget in seconds (default 600); two fifths are the nemesis's, unless CDC_FAULTS_KILLS=0
CDC_FAULTS_COUNT     stop after so many faults (default: when the time is up)
CDC_FAULTS_ROUND_S   how long a round's faults go on (default 75)
CDC_FAULTS_SEED      of the first round's dice; each round adds one
CDC_FAULTS_REPORT    write the report there, as JSON
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.campaign import Budget, run
from tests.faults.report import summarise, table


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_no_fault_breaks_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    alone = os.environ.get("CDC_FAULTS_KILLS") == "0"
    budget = Budget.from_environment(share=1.0 if alone else 0.4)
    with capsys.disabled():
        print(f"\nCDC_FAULTS_SEED={budget.seed} seconds={budget.seconds:.0f} round_s={budget.round_s:.0f}")
        started_s = time.monotonic()
        results = run(budget, lambda line: print(line, flush=True))
        report = summarise(budget, results, time.monotonic() - started_s)
        print(table(report))
    if (file := os.environ.get("CDC_FAULTS_REPORT")) is not None:
        Path(file).write_text(json.dumps(report, indent=1))
    assert report["findings"] == []
    assert report["faults_total"] > 0

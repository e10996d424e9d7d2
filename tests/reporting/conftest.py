from __future__ import annotations

import pytest
import report_samples as samples

from autopar.reporting import render
from autopar.reporting.load import Companions
from autopar.reporting.model import Page
from autopar.reporting.render import _page


@pytest.fixture(scope="session")
def all_pages() -> dict[str, Page]:
    full = Companions(
        profile=samples.profile(), search=samples.search_result(), cluster=samples.cluster()
    )
    none = Companions()
    record, search = samples.run_record(), samples.search_result()
    return {
        "run": _page(record, None, full),
        "run alone": _page(samples.run_record(verify=False), None, none),
        "plan": _page(search, None, full),
        "plan alone": _page(search.best.plan, None, none),
        "profile": _page(samples.measured_profile(), None, none),
        "bench": _page(samples.bench_result(), None, none),
        "compare runs": _page(samples.run_record(factor=1.0, seed=4), record, none),
        "compare plans": _page(search, search, none),
    }


@pytest.fixture(scope="session")
def all_html() -> dict[str, str]:
    record, search = samples.run_record(), samples.search_result()
    beside = {"profile": samples.profile(), "search": search, "cluster": samples.cluster()}
    return {
        "run": render(record, **beside),
        "plan": render(search, profile=samples.profile(), cluster=samples.cluster()),
        "profile": render(samples.measured_profile()),
        "bench": render(samples.bench_result()),
        "comparison": render(samples.run_record(factor=1.0, seed=4), other=record),
    }

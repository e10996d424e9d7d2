"""The reasons of a search on the page: each paragraph opens in bold with what it is about."""

from __future__ import annotations

from dataclasses import replace

import report_samples as samples

from autopar.reporting import render
from autopar.reporting.text import split_opening


def test_an_opening_ends_at_the_first_full_stop_or_question_mark():
    assert split_opening("Memory. 6.5 GiB of 8 GiB.") == ("Memory.", " 6.5 GiB of 8 GiB.")
    assert split_opening("Why not pp=2? Because.") == ("Why not pp=2?", " Because.")
    assert split_opening("No stop at all") == ("", "No stop at all")
    long = "word " * 30 + "end. More."
    assert split_opening(long) == ("", long)


def test_html_and_markdown_set_openings_in_bold():
    search = replace(samples.search_result(), explanation=("Memory. 6.5 <b> of 8 GiB.",))
    assert "<strong>Memory.</strong> 6.5 &lt;b&gt; of 8 GiB." in render(search)
    assert "**Memory.** 6.5 &lt;b&gt; of 8 GiB." in render(search, format="md")

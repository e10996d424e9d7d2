"""From a task to the op order that profiles, plans and runs share, and to pieces of it.

The profiler counts and times the same ops, in the same order, that the executor cuts and runs;
both get them here.
"""

from autopar.trace.export import TracedTask, build_model, retrace, trace
from autopar.trace.fragment import Fragment, extract

__all__ = ["Fragment", "TracedTask", "build_model", "extract", "retrace", "trace"]

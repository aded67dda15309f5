"""Turns each task that a Celery worker executes into a request: its method is `TASK`, and its route the task's name.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. A task that is
applied in place works for the request, or the task, that applied it, and counts with that.
"""

import sys

OK = 0
ERROR = 1


def instrument_trace(module):
    """Celery makes for each task a function that executes it and catches what it raises."""
    original = module.build_tracer

    def build_tracer(name, *arguments, **options):
        return traced(name, original(name, *arguments, **options))

    build_tracer.__wrapped__ = original
    native.replace(module, "build_tracer", build_tracer)
    native.at_work(observe_made)


def observe_made():
    """A worker that runs already has made those of its tasks."""
    for app in list(sys.modules["celery._state"]._get_active_apps()):
        # Not `tasks`, which may go and look for them.
        for name, task in list(app._tasks.items()):
            trace = vars(task).get("__trace__")
            if trace is not None and not hasattr(trace, "_leakline_traced"):
                native.replace(task, "__trace__", traced(name, trace))


def instrument_consumer(module):
    """It has the function by its name, and makes new ones when its connection is new."""
    observed = sys.modules["celery.app.trace"].build_tracer
    if module.build_tracer is not observed:
        native.replace(module, "build_tracer", observed)


def traced(name, trace):
    def trace_task(*arguments, **named):
        handle = native.begin("TASK", name)
        if not handle:
            return trace(*arguments, **named)
        native.name_server("celery")
        native.route(name)
        outcome = ERROR
        try:
            result = trace(*arguments, **named)
            # Without a state it went well; and to be tried again or to be ignored is no failure either.
            if getattr(getattr(result, "info", None), "state", None) != "FAILURE":
                outcome = OK
            return result
        finally:
            native.end(handle, outcome)

    # What somebody wraps around it has the mark, too.
    trace_task._leakline_traced = True
    return trace_task


native.install({"celery.app.trace": instrument_trace, "celery.worker.consumer.consumer": instrument_consumer})

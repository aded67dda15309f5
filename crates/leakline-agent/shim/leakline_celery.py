"""Turns each task that a Celery worker executes into a request: its method is `TASK`, and its route the task's name.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. A task that is
applied in place works for the request, or the task, that applied it, and counts with that.
"""

OK = 0
ERROR = 1


def instrument_trace(module):
    """Celery makes for each task a function that executes it and catches what it raises."""
    original = module.build_tracer

    def build_tracer(name, *arguments, **options):
        trace = original(name, *arguments, **options)

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

        return trace_task

    build_tracer.__wrapped__ = original
    native.replace(module, "build_tracer", build_tracer)


native.install({"celery.app.trace": instrument_trace})
